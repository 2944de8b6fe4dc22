package partnerauth_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// jwt is an unsigned token with the given claims.
func jwt(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + part([]byte(claims)) + "." + part([]byte("signature"))
}

// in2026 is when a partner answers whose client believes in 2000, where a bubble begins.
var in2026 = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// at is a time of the partner's in 2026, as NowPost writes it.
func at(d time.Duration) string { return in2026.Add(d).Format(time.RFC3339) }

// fields makes a header of lines, with a Date of 2026.
func fields(lines ...string) http.Header {
	return headers(append([]string{"Date: " + in2026.Format(http.TimeFormat)}, lines...)...)
}

// saying is any partner's answer with a token, and what else is in it.
func saying(token, more string) string {
	return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q,"key":%[1]q%s}`, token, more)
}

// checkLife watches the token of a first answer that takes a second: how long it is
// served, here and by another process from the Store, and when it is renewed and how,
// in times since the request for it was sent. It returns the time of the renewal.
func checkLife(t *testing.T, pr provider, first reply, want time.Duration) time.Duration {
	t.Helper()
	p := &partner{script: func(a asked) reply {
		if a.n > 0 {
			return reply{after: forever}
		}
		first.after = time.Second
		return first
	}}
	account := good(p)
	account.store = new(memory)
	source, began := pr.config(account).TokenSource(), time.Now()
	token, err := source.Token()
	must(t, err)
	defer time.Sleep(time.Hour) // until what hangs has given up
	served := func() bool {
		now, err := source.TokenContext(deadline(t, time.Microsecond))
		return err == nil && now == token
	}
	other, err := pr.config(account).TokenSource().TokenContext(deadline(t, time.Microsecond))
	errorIf(t, err != nil || !other.Expiry.Equal(token.Expiry), "%s: got %v, %v from the Store, want %v", pr.name, other, err, token)
	equal(t, pr.name+": the lifetime", token.Expiry.Sub(began), want)
	for time.Sleep(want*75/100 - time.Since(began) - 1); len(p.seen()) < 2; time.Sleep(want / 500) {
		if time.Since(began) > want {
			t.Fatalf("%s: no renewal in %v", pr.name, want)
		}
		errorIf(t, !served(), "%s: the token is not served after %v", pr.name, time.Since(began))
		synctest.Wait()
	}
	second := p.seen()[1]
	errorIf(t, second.op != pr.renews || second.at < want*75/100 || second.at > want*85/100+want/250,
		"%s: got a %s after %v of %v, want a %s after 75 %% to 85 %%", pr.name, second.op, second.at, want, pr.renews)
	time.Sleep(time.Until(token.Expiry) - time.Millisecond)
	equal(t, pr.name+": served a millisecond before its end", served(), true)
	time.Sleep(time.Millisecond)
	equal(t, pr.name+": served when it has ended", served(), false)
	return second.at
}

// The least of what is known of a lifetime counts, and is kept in a Store. Many processes
// do not renew at once.
func TestLifetimes(t *testing.T) {
	t.Parallel()
	const s, m, h = time.Second, time.Minute, time.Hour
	local := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // a bubble's first moment
	none := http.Header{}
	opaque := func(more string) string { return saying("t", more) }
	claims := func(text string, times ...time.Duration) string { // with times of the partner's
		for _, d := range times {
			text = strings.Replace(text, "@", fmt.Sprint(in2026.Add(d).Unix()), 1)
		}
		return jwt("{" + text + "}")
	}
	expiresAt := func(text string) string { return fmt.Sprintf(`,"expiresAt":%q`, text) }
	expiresIn := func(text string) string { return `,"expires_in":` + text }
	us := func(d time.Duration) string { return expiresAt(local.Add(d).Format(time.RFC3339)) }
	var renewals []time.Duration // after how much of a lifetime of 1000 s
	for _, c := range []struct {
		name   string
		header http.Header // nil: a Date of 2026
		body   string
		want   map[string]time.Duration // by provider; "": of all others
	}{
		{"NowPost's envelope", nil,
			`{"success":true,"data":{"token":"t","expiresAt":"` + at(24*h) + `","user":{"id":"user_123","email":"e"}}}`, nowPost(24 * h)},
		{"flat", nil, opaque(expiresAt(at(h))), nowPost(h)},
		{"both, the envelope counts", nil, `{"token":"x","expiresAt":"` + at(m) + `","data":{"token":"t","expiresAt":"` + at(h) + `"}}`,
			nowPost(h)},
		{"flat beside data without a token", nil, opaque(`,"data":{"user":{"id":"1"}}` + expiresAt(at(h))), nowPost(h)},
		{"data a list", nil, opaque(`,"data":[{"token":"x"}]` + expiresAt(at(h))), nowPost(h)},
		{"another zone", nil, opaque(expiresAt("2026-03-14T19:09:26+03:00")), nowPost(h)},
		{"a fraction, which Date has lost", nil, opaque(expiresAt("2026-03-14T16:09:26.900Z")), nowPost(h)},
		{"our clock is three hours ahead", dated(local.Add(-3 * h)), opaque(us(-2 * h)), nowPost(h)},
		{"our clock is three hours behind", dated(local.Add(3 * h)), opaque(us(4 * h)), nowPost(h)},
		{"without Date", none, opaque(us(h)), nowPost(h - s)}, // the second that it took to answer
		{"two seconds", nil, opaque(expiresAt(at(2 * s))), nowPost(2 * s)},
		{"a year", nil, opaque(expiresAt(at(365 * 24 * h))), nowPost(365 * 24 * h)},
		{"an object", nil, opaque(`,"expiresAt":{"at":"` + at(h) + `"}`), nowPost(24 * h)},
		{"without a zone", nil, opaque(expiresAt("2026-03-14 16:09:26")), nowPost(24 * h)},
		{"success null", nil, opaque(`,"success":null`), nowPost(24 * h)},

		{"Ndovu's sample", nil, `{"access_token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...","expires_in":3600,"token_type":"Bearer"}`,
			ndovu(h)},
		{"a float", nil, opaque(expiresIn("59.5")), ndovu(59500 * time.Millisecond)},
		{"a text", nil, opaque(expiresIn(`"120"`)), ndovu(2 * m)},
		{"expires_in an object", nil, opaque(expiresIn("{}")), ndovu(h)},
		{"acme's", nil, opaque(`,"ttl":120`), map[string]time.Duration{"acme": 2 * m}},

		{"nothing", none, opaque(""), unknown},
		{"exp against Date", nil, saying(claims(`"iat":@,"exp":@`, -3*h, 2*h), ""), all(2 * h)},
		{"exp alone", nil, saying(claims(`"exp":@`, 2*h), ""), all(2 * h)},
		{"exp with a fraction", nil, saying(claims(`"exp":@.5`, 2*h), ""), all(2*h + s/2)},
		{"exp is the least", nil, saying(claims(`"exp":@`, h/2), expiresIn("3600")+expiresAt(at(h))), all(h / 2)},
		{"exp is not", nil, saying(claims(`"exp":@`, 3*h), expiresIn("1800")+expiresAt(at(h))),
			map[string]time.Duration{"nowpost": h, "ndovu": h / 2, "acme": 3 * h}},
		{"exp has passed, iat counts", nil, saying(claims(`"iat":@,"exp":@`, -3*h, -h), ""), all(2 * h)},
		{"exp is now, nbf counts", nil, saying(claims(`"nbf":@,"exp":@`, -20*m, 0), ""), all(20 * m)},
		{"exp has passed, nothing else is known", nil, saying(claims(`"exp":@`, -h), ""), unknown},
		{"no Date", none, saying(claims(`"iat":@,"exp":@`, 0, 2*h), ""), all(2 * h)},
		{"no Date, iat before nbf", none, saying(claims(`"iat":@,"nbf":@,"exp":@`, 0, h, 2*h), ""), all(2 * h)},
		{"no Date, fractions", none, saying(jwt(`{"iat":1.5,"exp":101.5}`), ""), all(100 * s)},
		{"no Date, exp alone", none, saying(claims(`"exp":@`, 2*h), ""), unknown},
		{"no exp", nil, saying(claims(`"iat":@`, 0), ""), unknown},
		{"texts", nil, saying(jwt(`{"iat":"1","exp":"61"}`), ""), unknown},
		{"two parts", nil, saying(strings.TrimSuffix(claims(`"exp":@`, h),
			"."+base64.RawURLEncoding.EncodeToString([]byte("signature"))), ""),
			unknown},
		{"not base64url", nil, saying("a.***.c", ""), unknown},
	} {
		if c.header == nil {
			c.header = fields()
		}
		bubble(t, c.name, func(t *testing.T) {
			for _, pr := range providers {
				want, ok := c.want[pr.name]
				if !ok {
					want = c.want[""]
				}
				if want > 0 {
					renewed := checkLife(t, pr, reply{header: c.header, body: c.body}, want)
					renewals = append(renewals, time.Duration(1000*float64(s)*renewed.Seconds()/want.Seconds()))
				}
			}
		})
	}
	wide := slices.Max(renewals)-slices.Min(renewals) >= 50*s
	errorIf(t, !spread(renewals) || !wide, "got renewals after %v of 1000 s, want them spread", renewals)
}

func nowPost(d time.Duration) map[string]time.Duration { return map[string]time.Duration{"nowpost": d} }
func ndovu(d time.Duration) map[string]time.Duration   { return map[string]time.Duration{"ndovu": d} }
func all(d time.Duration) map[string]time.Duration     { return map[string]time.Duration{"": d} }

var unknown = map[string]time.Duration{"nowpost": 24 * time.Hour, "": time.Hour}

// A token that is over by its own answer, as a stand-in's that answers the page's sample
// literally, is used for a short while. It is renewed by login, since an ended token must
// not be sent, and costs at most ten token requests a minute.
func TestAnswerPastItsOwnExpiry(t *testing.T) {
	t.Parallel()
	const sample = `{"success":true,"data":{"token":"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...",` +
		`"expiresAt":"2024-01-15T12:00:00Z","user":{"id":"user_123","email":"your-email@example.com"}}}`
	for _, c := range []struct {
		name  string
		pr    provider
		reply reply
	}{
		{"the page's sample", providers[0], reply{header: fields(), body: sample}},
		{"over by a second", providers[0], reply{header: fields(), body: saying("t", `,"expiresAt":"`+at(-time.Second)+`"`)}},
		{"over while it was on its way", providers[0],
			reply{header: fields(), body: saying("t", `,"expiresAt":"`+at(time.Second)+`"`), after: 2 * time.Second}},
		{"by our clock", providers[0], reply{body: saying("t", `,"expiresAt":"1999-12-31T23:59:59Z"`)}},
		{"JWT absurdly", providers[0], reply{body: saying(jwt(`{"iat":1e308,"exp":-1e308}`), "")}},
		{"Ndovu's zero", providers[1], reply{body: saying("t", `,"expires_in":0`)}},
	} {
		bubble(t, c.name, func(t *testing.T) {
			p := &partner{script: always(c.reply)}
			source := p.source(c.pr)
			waited := 0
			for range 3600 { // in three minutes
				var token *oauth2.Token
				took := elapsed(func() { token, _ = source.Token() })
				if token == nil || !time.Now().Before(token.Expiry) {
					t.Fatalf("got %v, want a token that is not over", token)
				}
				if took > 0 {
					waited++
				}
				time.Sleep(50 * time.Millisecond)
			}
			errorIf(t, waited > 1 && c.reply.after == 0, "got %d callers that waited, want the first alone", waited)
			log := p.seen()
			errorIf(t, len(log) < 5 || p.count("refresh") > 0, "got %s in three minutes, want several logins", p.ops())
			for i := 10; i < len(log); i++ {
				d := log[i].at - log[i-10].at
				errorIf(t, d < time.Minute, "got 11 token requests in %v", d)
			}
			time.Sleep(time.Minute)
		})
	}
}

// The same expired token again gets no second while: the partner will notice.
func TestExpiredTokenGetsNoSecondWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, p := time.Now(), new(partner)
		p.script = func(a asked) reply {
			if a.op == "call" {
				errorIf(t, a.token == "same" && a.at >= time.Hour, "a token that lived an hour was sent after %v", a.at)
				return reply{status: 200}
			}
			token, ends := "same", began.Add(time.Hour)
			if a.at > time.Hour+20*time.Second {
				token, ends = "another", began.Add(2*time.Hour)
			}
			return reply{header: dated(time.Now()), body: saying(token, `,"expiresAt":"`+ends.UTC().Format(time.RFC3339)+`"`)}
		}
		rt := p.transport(nil)
		var code int
		for time.Since(began) < time.Hour+2*time.Minute {
			code, _ = try(t.Context(), rt, "/")
			time.Sleep(time.Second)
		}
		equal(t, "status with another token", code, 200)
	})
}

// A partner that is honest about its tokens is sent none that has ended, for a refresh
// neither, and lifetimes are no matter. One that ended while nobody asked for it is
// replaced by login, if it has no RefreshToken.
func TestTokensOfAnyLifetime(t *testing.T) {
	t.Parallel()
	const lives, calls = 10, 500
	for _, lifetime := range []time.Duration{5 * time.Second, time.Minute, 24 * time.Hour} {
		for _, pr := range providers {
			bubble(t, fmt.Sprint(lifetime, " ", pr.name), func(t *testing.T) {
				slow := reply{after: min(lifetime/20, 5*time.Second)}
				p := (&partner{lifetime: lifetime}).on("login", slow).on("refresh", slow)
				rt := p.transportOf(pr, nil)
				waited := 0
				for range calls {
					if elapsed(func() { equal(t, "status", get(t, rt, "/"), 200) }) > 0 {
						waited++
					}
					time.Sleep(lifetime * lives / calls)
				}
				tokens := p.count("login") + p.count("refresh")
				errorIf(t, tokens < lives || tokens > lives*10/7+2, "%d tokens in %d lifetimes, want one in 80 %% of each", tokens, lives)
				errorIf(t, p.count(pr.renews) < tokens-1, "got %s, want no %s but the first", p.ops(), "login")
				equal(t, "callers that waited", waited, 1)
				replaced := "login"
				if pr.name == "acme" {
					replaced = "refresh"
				}
				time.Sleep(lifetime)
				for _, idle := range []time.Duration{lifetime, lifetime + time.Nanosecond, 100 * time.Hour} {
					time.Sleep(idle)
					equal(t, "status", get(t, rt, "/"), 200)
					errorIf(t, !strings.HasSuffix(p.ops(), " "+replaced), "after %v got %s, want a %s", idle, p.ops(), replaced)
				}
				equal(t, "requests with a token that had ended", p.count("call 401")+p.count("refresh 401"), 0)
			})
		}
	}
}

// An issuer is a way in which a partner fills in its tokens, which last an hour. In claims
// and more, NOW, FIRST (since the first login), EXP, DAY and LEFT stand for times of its own.
type issuer struct {
	name         string
	claims, more string        // no claims: the token is opaque
	first        bool          // it ends an hour after the session began
	keeps        time.Duration // it hands out the same token again while that has longer to live
}

var issuers = []issuer{
	{name: "iat and exp", claims: `"iat":NOW,"exp":EXP`},
	{name: "the first iat is kept", claims: `"iat":FIRST,"exp":EXP`},
	{name: "exp is not extended", claims: `"iat":NOW,"exp":EXP`, first: true},
	{name: "nor is it said when", claims: `"exp":EXP`, first: true},
	{name: "nbf in the past", claims: `"nbf":FIRST,"exp":EXP`},
	{name: "the same until its last second", claims: `"exp":EXP`, keeps: time.Second},
	{name: "the same to its end, counted down", more: `,"expires_in":LEFT,"ttl":LEFT,"expiresAt":"ISO"`, keeps: 1},
	{name: "expires_in is longer", claims: `"iat":NOW,"exp":EXP`,
		more: `,"expires_in":86400,"ttl":86400,"expiresAt":"2099-01-01T00:00:00Z"`},
	{name: "exp is longer", claims: `"iat":NOW,"exp":DAY`, more: `,"expires_in":LEFT,"ttl":LEFT,"expiresAt":"ISO"`},
}

// A session at a partner with a clock of its own, which counts the tokens that it was sent
// after their end.
type session struct {
	issuer
	partner
	skew time.Duration // of its clock

	answering sync.Mutex // guards what follows
	n         int
	began     time.Time
	current   string
	ends      map[string]time.Time
	late      []string
}

func (s *session) answer(a asked) reply {
	s.answering.Lock()
	defer s.answering.Unlock()
	now := time.Now().Add(s.skew)
	if a.token != "" && !now.Before(s.ends[a.token]) {
		s.late = append(s.late, fmt.Sprintf("%s at %v, %v after its end", a.op, a.at, now.Sub(s.ends[a.token])))
		return reply{status: 401}
	}
	if a.op == "call" {
		return reply{status: 200}
	}
	if s.n++; a.op == "login" {
		s.began = now
	}
	ends := now.Add(time.Hour)
	if s.first {
		ends = s.began.Add(time.Hour)
	}
	if strings.Contains(s.claims, "EXP") {
		ends = ends.Truncate(time.Second)
	}
	again := s.keeps > 0 && s.ends[s.current].Sub(now) > s.keeps
	if again {
		ends = s.ends[s.current]
	}
	unix := func(at time.Time) string { return fmt.Sprint(at.Unix()) }
	fill := strings.NewReplacer("NOW", unix(now), "FIRST", unix(s.began), "EXP", unix(ends), "DAY", unix(now.AddDate(0, 0, 1)),
		"LEFT", fmt.Sprint(int(ends.Sub(now).Seconds())), "ISO", ends.UTC().Format(time.RFC3339)).Replace
	if !again {
		s.current = jwt(fmt.Sprintf(`{"jti":"%d",%s}`, s.n, fill(s.claims)))
		if s.claims == "" {
			s.current = fmt.Sprint("opaque-", s.n)
		}
	}
	s.ends[s.current] = ends
	return reply{status: 200, header: dated(now), body: saying(s.current, fill(s.more)), after: 300 * time.Millisecond}
}

// Hours with tokens of an hour: none is sent after its end by the partner's clock, whatever
// the partner writes into them, and none costs a caller a 401. Two processes with a Store
// are not worse off.
func TestHourlyTokens(t *testing.T) {
	t.Parallel()
	const hours = 4
	for i, issuer := range issuers {
		for _, pr := range providers {
			if issuer.claims == "" && pr.name == "acme" {
				continue // whose answer cannot say that nothing is left
			}
			bubble(t, issuer.name+" "+pr.name, func(t *testing.T) {
				processes := 1 + i%2
				s := &session{issuer: issuer, ends: map[string]time.Time{},
					skew: []time.Duration{-7 * time.Hour, 26*365*24*time.Hour + 700*time.Millisecond, 0}[i%3]}
				s.script = s.answer
				all := s.fleetOf(pr, processes, storeIf(processes > 1), samePassword)
				for n, began := 0, time.Now(); time.Since(began) < hours*time.Hour; n++ {
					rt := all[n%processes]
					equal(t, "status", get(t, rt, "/"), 200)
					token, err := rt.Source.Token()
					must(t, err)
					time.Sleep(max(100*time.Millisecond, time.Until(token.Expiry)/10)) // closer and closer to its end
				}
				time.Sleep(2 * time.Hour) // all renewals have ended
				synctest.Wait()
				errorIf(t, len(s.late) > 0, "%d requests had a token that had ended: %q", len(s.late), s.late)
				most := hours*4/3 + 1
				if issuer.first || issuer.keeps > 0 {
					most = hours * 15 // four fifths of what is left, and again
				}
				errorIf(t, s.n > most, "%d token requests, want %d at most", s.n, most)
			})
		}
	}
}

// storeIf is a Store of processes that share one, else none.
func storeIf(shared bool) partnerauth.Store {
	if shared {
		return new(memory)
	}
	return nil
}
