package partnerauth_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/partnerauth/partnerauth"
)

// An issuer is a partner with tokens of an hour by a clock of its own. It counts the
// tokens that it was sent after their end.
type issuer struct {
	partner
	skew  time.Duration // of its clock
	grant func(i *issuer, now time.Time, op string) (body string, ends time.Time)

	answering sync.Mutex // guards what follows

	n       int
	first   time.Time // of the session
	ends    map[string]time.Time
	current string // for those that hand out the same again
	late    []string
}

func (i *issuer) answer(a asked) reply {
	i.answering.Lock()
	defer i.answering.Unlock()
	now := time.Now().Add(i.skew)
	good := now.Before(i.ends[a.token])
	if a.op != "login" && !good {
		i.late = append(i.late, fmt.Sprintf("%s with %.60s at %v, %v after its end", a.op, a.token, a.at, now.Sub(i.ends[a.token])))
		return reply{status: 401}
	}
	if a.op == "call" {
		return reply{status: 200}
	}
	i.n++
	if a.op == "login" {
		i.first = now
	}
	token, ends := i.grant(i, now, a.op)
	i.ends[i.current] = ends
	return reply{status: 200, header: dated(now), body: token, after: 300 * time.Millisecond}
}

// token returns an answer with a JWT of these claims, and what else is in it.
func (i *issuer) token(more, claims string, args ...any) string {
	i.current = jwt(fmt.Sprintf(`{"jti":"`+fmt.Sprint(i.n)+`",`+claims+`}`, args...))
	return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q%s}`, i.current, more)
}

// issuers are the ways in which partners fill in their tokens.
var issuers = map[string]func(i *issuer, now time.Time, op string) (body string, ends time.Time){
	"iat and exp": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		return i.token("", `"iat":%d,"exp":%d`, now.Unix(), now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"the first iat is kept": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		return i.token("", `"iat":%d,"exp":%d`, i.first.Unix(), now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"exp is not extended": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		exp := i.first.Unix() + 3600
		return i.token("", `"iat":%d,"exp":%d`, now.Unix(), exp), time.Unix(exp, 0)
	},
	"nor is it said when": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		exp := i.first.Unix() + 3600
		return i.token("", `"exp":%d`, exp), time.Unix(exp, 0)
	},
	"exp alone": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		return i.token("", `"exp":%d`, now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"nbf in the past": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		return i.token("", `"nbf":%d,"exp":%d`, now.Unix()-7200, now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"the same until its last second": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		if ends := i.ends[i.current]; ends.Sub(now) > time.Second {
			return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q}`, i.current), ends
		}
		return i.token("", `"exp":%d`, now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"the same to its end, counted down": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		if ends := i.ends[i.current]; ends.Sub(now) > 0 {
			left := ends.Sub(now).Seconds()
			return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q,"expires_in":%d,"expiresAt":%q}`, i.current, int(left), ends.UTC().Format(time.RFC3339)), ends
		}
		i.current = fmt.Sprint("opaque-", i.n)
		return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q,"expires_in":3600,"expiresAt":%q}`, i.current, now.Add(time.Hour).UTC().Format(time.RFC3339)), now.Add(time.Hour)
	},
	"expires_in is longer": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		more := fmt.Sprintf(`,"expires_in":86400,"expiresAt":%q`, now.Add(24*time.Hour).UTC().Format(time.RFC3339))
		return i.token(more, `"iat":%d,"exp":%d`, now.Unix(), now.Unix()+3600), time.Unix(now.Unix()+3600, 0)
	},
	"exp is longer": func(i *issuer, now time.Time, _ string) (string, time.Time) {
		more := fmt.Sprintf(`,"expires_in":3600,"expiresAt":%q`, now.Add(time.Hour).UTC().Format(time.RFC3339))
		return i.token(more, `"iat":%d,"exp":%d`, now.Unix(), now.Unix()+86400), now.Add(time.Hour)
	},
}

// Twelve hours with tokens of an hour: none is sent after its end by the partner's
// clock, whatever it writes into them, and none costs a caller a 401. Two processes
// with a Store are not worse off.
func TestTwelveHoursOfHourlyTokens(t *testing.T) {
	t.Parallel()
	for name, grant := range issuers {
		for skew, shared := range map[time.Duration]bool{0: false, -7 * time.Hour: true, 26*365*24*time.Hour + 700*time.Millisecond: false} {
			bubble(t, fmt.Sprintf("%s, skew %v, shared %t", name, skew, shared), func(t *testing.T) {
				var store partnerauth.Store
				if shared {
					store = new(memory)
				}
				for provider := range new(partner).everybody(nil) {
					i := &issuer{skew: skew, grant: grant, ends: map[string]time.Time{}}
					i.script = i.answer
					var rts []*partnerauth.Transport
					for range map[bool]int{false: 1, true: 2}[shared] {
						rt := i.transport(nil)
						rt.Source = i.everybody(store)[provider]
						rts = append(rts, rt)
					}
					for n, began := 0, time.Now(); time.Since(began) < 12*time.Hour; n++ {
						rt := rts[n%len(rts)]
						if code := get(t, rt, "/"); code != 200 {
							t.Fatalf("%s: got %d after %v", provider, code, time.Since(began))
						}
						token, err := rt.Source.Token()
						must(t, err)
						time.Sleep(max(100*time.Millisecond, time.Until(token.Expiry)/10)) // closer and closer to its end
					}
					time.Sleep(2 * time.Hour) // all renewals have ended
					synctest.Wait()
					errorIf(t, len(i.late) > 0, "%s: %d requests had a token that had ended: %s", provider, len(i.late), strings.Join(i.late[:min(3, len(i.late))], "; "))
					most := 16
					if strings.Contains(name, "not") || strings.Contains(name, "nor") || strings.Contains(name, "same") {
						most = 12 * 15 // four fifths of what is left, and again
					}
					errorIf(t, i.n > most, "%s: %d token requests, want %d at most", provider, i.n, most)
				}
			})
		}
	}
}

// The least of what is known counts, and is kept in a Store.
func TestLeastLifetime(t *testing.T) {
	t.Parallel()
	const h, m = time.Hour, time.Minute
	exp := func(d time.Duration) int64 { return in2026.Add(d).Unix() }
	token := func(claims, more string) string {
		return fmt.Sprintf(`{"token":%[1]q,"access_token":%[1]q%s}`, jwt("{"+claims+"}"), more)
	}
	expiresAt := func(d time.Duration) string { return fmt.Sprintf(`,"expiresAt":%q`, at(d)) }
	for _, c := range []struct {
		name           string
		header         []string // beside the Date, "no date" for none
		body           string
		nowPost, ndovu time.Duration
	}{
		{name: "exp against Date", body: token(fmt.Sprintf(`"iat":%d,"exp":%d`, exp(-3*h), exp(2*h)), ""), nowPost: 2 * h, ndovu: 2 * h},
		{name: "exp alone", body: token(fmt.Sprintf(`"exp":%d`, exp(2*h)), ""), nowPost: 2 * h, ndovu: 2 * h},
		{name: "exp with a fraction", body: token(fmt.Sprintf(`"exp":%d.5`, exp(2*h)), ""), nowPost: 2*h + 500*time.Millisecond, ndovu: 2*h + 500*time.Millisecond},
		{name: "exp is the least", body: token(fmt.Sprintf(`"exp":%d`, exp(h/2)), `,"expires_in":3600`+expiresAt(h)), nowPost: h / 2, ndovu: h / 2},
		{name: "exp is not", body: token(fmt.Sprintf(`"exp":%d`, exp(3*h)), `,"expires_in":1800`+expiresAt(h)), nowPost: h, ndovu: h / 2},
		{name: "exp has passed, iat counts", body: token(fmt.Sprintf(`"iat":%d,"exp":%d`, exp(-3*h), exp(-h)), ""), nowPost: 2 * h, ndovu: 2 * h},
		{name: "exp is now, nbf counts", body: token(fmt.Sprintf(`"nbf":%d,"exp":%d`, exp(-20*m), exp(0)), ""), nowPost: 20 * m, ndovu: 20 * m},
		{name: "exp has passed, nothing else is known", body: token(fmt.Sprintf(`"exp":%d`, exp(-h)), ""), nowPost: 24 * h, ndovu: h},
		{name: "no Date", header: []string{"no date"}, body: token(fmt.Sprintf(`"iat":%d,"exp":%d`, exp(0), exp(2*h)), ""), nowPost: 2 * h, ndovu: 2 * h},
		{name: "no Date, iat before nbf", header: []string{"no date"}, body: token(fmt.Sprintf(`"iat":%d,"nbf":%d,"exp":%d`, exp(0), exp(h), exp(2*h)), ""), nowPost: 2 * h, ndovu: 2 * h},
		{name: "no Date, exp alone", header: []string{"no date"}, body: token(fmt.Sprintf(`"exp":%d`, exp(2*h)), ""), nowPost: 24 * h, ndovu: h},
		{name: "not a JWT", body: strings.ReplaceAll(token(fmt.Sprintf(`"exp":%d`, exp(2*h)), ""), ".", ""), nowPost: 24 * h, ndovu: h},
	} {
		bubble(t, c.name, func(t *testing.T) {
			header := fields(c.header...)
			if c.header != nil {
				header = nil
			}
			p, store := &partner{script: always(reply{header: header, body: c.body, after: time.Second})}, new(memory)
			for provider, want := range map[string]time.Duration{"nowpost": c.nowPost, "ndovu": c.ndovu, "acme": c.ndovu} {
				began := time.Now()
				first, err := p.everybody(store)[provider].Token()
				must(t, err)
				time.Sleep(time.Second)
				second, err := p.everybody(store)[provider].Token() // another process
				must(t, err)
				got := [2]time.Duration{first.Expiry.Sub(began), second.Expiry.Sub(began)}
				errorIf(t, got[0] != want, "%s: ends %v after it was asked for, want %v", provider, got[0], want)
				errorIf(t, got[1] != want, "%s, from the Store: ends %v after it was asked for, want %v", provider, got[1], want)
			}
		})
	}
}

// A token that has expired by its own answer is used for a short while, but the same
// again gets no second one: the partner will notice.
func TestExpiredTokenGetsNoSecondWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, ends := time.Now(), time.Now().Add(time.Hour)
		p := new(partner)
		p.script = func(a asked) reply {
			if a.op == "call" {
				errorIf(t, time.Since(began) >= time.Hour && a.token == "same", "a token that lived an hour was sent after %v", time.Since(began))
				return reply{status: 200}
			}
			token := "same"
			if time.Since(began) > time.Hour+20*time.Second {
				token, ends = "another", time.Now().Add(time.Hour)
			}
			return reply{header: dated(time.Now()), body: fmt.Sprintf(`{"token":%q,"expiresAt":%q}`, token, ends.UTC().Format(time.RFC3339))}
		}
		rt := p.transport(nil)
		last := 0
		for time.Since(began) < 2*time.Hour-time.Minute {
			if code, _ := try(t.Context(), rt, "/"); code == 200 {
				last++
			}
			time.Sleep(time.Second)
		}
		errorIf(t, last < 7000, "%d calls were served", last)
	})
}
