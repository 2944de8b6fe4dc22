package partnerauth_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"golang.org/x/oauth2"

	"github.com/partnerauth/partnerauth"
)

// A hunt plants secrets and searches what comes out for them.
type hunt struct {
	testing.TB
	secrets []planted
	seen    int             // texts searched
	found   map[string]bool // so that each find is reported once
}

// A planted secret is sent by the client or, if answered, only in an answer.
type planted struct {
	name     string
	answered bool
	forms    []string
}

func newHunt(t testing.TB) *hunt { return &hunt{TB: t, found: map[string]bool{}} }

// specials are what escapes differ on: JSON, URLs, forms and Basic.
const specials = `"<&>:+/%\ ü`

// plant makes a secret that nothing else contains, with specials in its middle:
// the ends of it stay as they are in every kind of escape.
func (h *hunt) plant(name string) string {
	value := rand.Text()[:16] + specials + rand.Text()[:16]
	h.watch(name, value, false)
	return value
}

// plantAnswer makes a secret for an answer, without specials.
func (h *hunt) plantAnswer(name string) string {
	value := rand.Text()
	h.watch(name, value, true)
	return value
}

// watch searches for value from now on: for its parts between specials and dots
// that are long enough to be nothing else, raw, in base64 at any offset, and in
// whatever base fmt has.
func (h *hunt) watch(name, value string, answered bool) {
	s := planted{name: name, answered: answered}
	for _, part := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(specials+".", r) }) {
		if len(part) < 12 {
			continue
		}
		s.forms = append(s.forms, part, strings.ToLower(part), strings.ToUpper(part))
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for offset := range 3 {
				// the first and last characters depend on what is around
				text := encoding.EncodeToString([]byte(strings.Repeat("x", offset) + part))
				s.forms = append(s.forms, text[(offset*8+5)/6:len(text)-1])
			}
		}
		for _, verb := range []string{"%x", "%X", "% x", "% X", "%# x", "%d", "%#v", "%o", "%b", "%c", "%U"} {
			text := fmt.Sprintf(verb, []byte(part))
			text = text[strings.IndexAny(text, "[{")+1:]
			s.forms = append(s.forms, strings.TrimRight(text, "]}"))
		}
	}
	if len(s.forms) == 0 {
		h.Fatalf("%s is too short to be searched for", name)
	}
	slices.Sort(s.forms)
	s.forms = slices.Compact(s.forms)
	h.secrets = append(h.secrets, s)
}

// search reports every secret in text, once for what shows it; those of answers
// only if all is true.
func (h *hunt) search(what, how, text string, all bool) {
	h.Helper()
	h.seen++
	for _, s := range h.secrets {
		if s.answered && !all || h.found[what+s.name] {
			continue
		}
		if i := slices.IndexFunc(s.forms, func(form string) bool { return strings.Contains(text, form) }); i >= 0 {
			h.found[what+s.name] = true
			h.Errorf("%s, %s, shows the %s:\n%.300q", what, how, s.name, text[max(0, strings.Index(text, s.forms[i])-100):])
		}
	}
}

// format searches what fmt makes of v.
func (h *hunt) format(what string, v any, verbs string, flags ...string) {
	h.Helper()
	for _, verb := range verbs {
		for _, flag := range flags {
			h.search(what, "in %"+flag+string(verb), fmt.Sprintf("%"+flag+string(verb), v), true)
		}
	}
}

// printed searches all that fmt, slog and encoding/json make of v by the usual verbs.
func (h *hunt) printed(what string, v any) {
	h.Helper()
	h.format(what, v, "vsqxd", "", "+", "#")
	h.search(what, "by Sprint", fmt.Sprint(v), true)
	var b bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		log := slog.New(handler)
		log.Info("x", "v", v, "s", fmt.Sprint(v))
		log.With("v", v).WithGroup("g").Error("x", slog.Group("h", "v", v), "many", []any{v}, "named", map[string]any{"v": v})
	}
	h.search(what, "in slog", b.String(), true)
	for _, wrapped := range []any{v, []any{v}, map[string]any{"v": v}, struct{ V any }{v}} {
		out, err := json.Marshal(wrapped)
		h.search(what, "in JSON", string(out)+fmt.Sprint(err), true)
	}
}

// everyVerb does so by all verbs but %p and %w: go vet refuses those for what is no pointer
// or error, and fmt calls no method for them that could hide anything.
func (h *hunt) everyVerb(what string, v any) {
	h.Helper()
	h.printed(what, v)
	h.format(what, v, "vsqxXdT", " ", "0", "+#", "-30")
	h.format(what, v, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcefghijklmnortuyz", "", "#")
}

// failed searches err and everything it unwraps to. An *oauth2.RetrieveError
// has the partner's answer, and shows it; but nothing that we had sent.
func (h *hunt) failed(what string, err error) {
	h.Helper()
	if err == nil {
		h.Errorf("%s: got no error", what)
		return
	}
	h.printed(what+": the error", err)
	h.unwrapped(what, err)
}

func (h *hunt) unwrapped(what string, err error) {
	h.Helper()
	part := fmt.Sprintf("%s: the %T", what, err)
	switch e := err.(type) {
	case nil:
		return
	case *oauth2.RetrieveError:
		h.search(part, "its fields or text", fmt.Sprintf("%s %v %v %s %s %s %s", e.Body, e.Response.Header, e.Response.Status,
			e.ErrorCode, e.ErrorDescription, e.ErrorURI, e), false)
		if e.Response.Request != nil {
			h.Errorf("%s has the request in it: %v", part, e.Response.Request)
		}
		return
	case *partnerauth.AuthError:
		h.printed(part+" as a value", *e)
		h.printed(part+" in a struct", struct{ E any }{*e})
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			h.unwrapped(what, err)
		}
	}
	h.format(part, err, "vsqxd", "", "+", "#")
	h.unwrapped(what, errors.Unwrap(err))
}

// exported searches all spans and metrics.
func (h *hunt) exported(where string, rec *recording) {
	h.Helper()
	spans := tracetest.SpanStubsFromReadOnlySpans(rec.ended())
	h.search(where+": spans", "exported", jsonOf(spans)+fmt.Sprintf("%+v", spans), true)
	h.search(where+": metrics", "exported", jsonOf(rec.collect(h.TB))+rec.points(h.TB), true)
	if len(spans) == 0 {
		h.Errorf("%s: there are no spans to search", where)
	}
}

// answered searches what an answer tells of its request.
func (h *hunt) answered(where string, resp *http.Response) {
	h.Helper()
	req := resp.Request
	h.search(where+": resp.Request", "in %+v", fmt.Sprintf("%+v %v", req, req.Header), true)
	errorIf(h.TB, req.Header["Authorization"] != nil, "%s: resp.Request has Authorization %q", where, req.Header["Authorization"])
}

// The hunt itself has to find what is there.
func TestHunt(t *testing.T) {
	silent := &silentTB{TB: t}
	h := newHunt(silent)
	secret := h.plant("secret")
	text, _ := json.Marshal(secret)
	shown := []string{
		secret, string(text), url.QueryEscape(secret), url.PathEscape(secret), fmt.Sprintf("%q %x", secret, "x"),
		fmt.Sprintf("%x", secret), fmt.Sprintf("% X", secret), fmt.Sprintf("%v", []byte(secret)), fmt.Sprintf("%#v", []byte(secret)),
		strings.ToLower(secret), secret[:20], secret[20:],
	}
	for i := range 3 {
		shown = append(shown,
			base64.StdEncoding.EncodeToString([]byte("user:"[i:]+secret+"!")),
			base64.URLEncoding.EncodeToString([]byte("user:"[i:]+secret)))
	}
	for i, text := range shown {
		before := silent.errors
		h.search(fmt.Sprint(i), "", "before "+text+" after", true)
		errorIf(t, silent.errors != before+1, "the secret was not found in %s", text)
	}
	before := silent.errors
	h.search("elsewhere", "", "nothing", true)
	h.failed("an error", fmt.Errorf("outer: %w", errors.New("inner")))
	errorIf(t, silent.errors != before, "the secret was found where it is not")
	h.failed("an error", fmt.Errorf("%.0w", errors.New(secret)))
	errorIf(t, silent.errors == before, "the secret was not found in a wrapped error")
}

type silentTB struct {
	testing.TB
	errors int
}

func (s *silentTB) Helper()               {}
func (s *silentTB) Errorf(string, ...any) { s.errors++ }

// Configurations, Sources, Transports and clients print safely, before and
// after use, broken or not.
func TestSecretsInValues(t *testing.T) {
	h := newHunt(t)
	for _, pr := range providers {
		name, p := pr.name, new(partner)
		c := credentials{id: "i", secret: h.plant(name + "'s secret"), base: p}
		h.watch("Basic pair", base64.StdEncoding.EncodeToString([]byte("i:"+c.secret)), false)
		client := pr.config(c).Client()
		rt := client.Transport.(*partnerauth.Transport)
		token := rand.Text()
		p.on("login", reply{body: granted(token, time.Hour)}).on("call", reply{status: 200})
		client.Transport = &partnerauth.Transport{Source: rt.Source, Base: roundTripFunc(p.RoundTrip)} // the log has what was sent
		h.printed("an unused "+name+" client", client)
		resp, err := client.Get(apiURL)
		must(t, err)
		h.watch(name+" token", token, false)
		h.answered(name, resp)
		h.printed("a "+name+" client", client)
		h.printed("a "+name+" client's value", *client)
		h.everyVerb("a "+name+" Transport", client.Transport)
		h.everyVerb("a "+name+" Source", rt.Source)
		h.printed("a "+name+" Source in a struct", struct{ Source oauth2.TokenSource }{rt.Source})

		c.base = nil
		config := pr.config(c)
		pointer := reflect.New(reflect.TypeOf(config))
		pointer.Elem().Set(reflect.ValueOf(config))
		typed := reflect.Append(reflect.MakeSlice(reflect.SliceOf(pointer.Type().Elem()), 0, 1), pointer.Elem())
		c.baseURL = "https://" + url.UserPassword("me", h.plant("password in BaseURL")).String() +
			"@api.example/?q=" + url.QueryEscape(h.plant("query of BaseURL"))
		bad := pr.config(c)
		for i, v := range []any{config, pointer.Interface(), typed.Interface(), bad, bad.TokenSource(), bad.Client()} {
			what := fmt.Sprintf("%d, a %T of %s", i, v, name)
			h.everyVerb(what, v)
			h.printed(what+" in a struct", struct{ Partner any }{v})
			h.printed(what+" in a slice", []any{v})
		}
	}
	errorIf(t, h.seen < 1000, "searched %d texts, want more", h.seen)
}

// Errors of configuration name the field or variable and not what is in it.
func TestSecretsInConfigErrors(t *testing.T) {
	h := newHunt(t)
	pw, in := h.plant("password"), h.plant("secret in a URL")
	user := "https://" + url.UserPassword("me", in).String() + "@api.example"
	failing := func(context.Context) (string, error) { return pw, errors.New("the vault is away") }
	wrong := func(context.Context) (string, error) { return pw + "\n", nil }
	sources := map[string]*partnerauth.Source{
		"password not UTF-8": partnerauth.NowPost{Email: "e", Password: pw + "\xff"}.TokenSource(),
		"colon":              partnerauth.Ndovu{ClientID: pw + ":", ClientSecret: pw, BaseURL: apiURL}.TokenSource(),
		"no URL":             partnerauth.Ndovu{ClientID: "id", ClientSecret: pw}.TokenSource(),
		"no Name":            partnerauth.Provider{Account: pw, BaseURL: apiURL}.TokenSource(),
	}
	for _, pr := range providers {
		sources[pr.name+", the Func fails"] = pr.config(credentials{id: "i", ask: failing}).TokenSource()
		if pr.secretField == "" {
			continue
		}
		sources[pr.name+", no "+pr.idField] = pr.config(credentials{secret: pw}).TokenSource()
		sources[pr.name+", a newline"] = pr.config(credentials{id: "i", secret: pw + "\n"}).TokenSource()
		sources[pr.name+", a newline of the Func's"] = pr.config(credentials{id: "i", ask: wrong}).TokenSource()
	}
	for i, raw := range []string{
		user, user + "/%zz", apiURL + "?" + url.QueryEscape(in), apiURL + "#" + url.PathEscape(in),
		"https://" + in, "://" + in, "http://api.example/" + in, in,
	} {
		for _, pr := range providers {
			sources[fmt.Sprint(pr.name, ", BaseURL ", i)] = pr.config(credentials{id: "i", secret: pw, baseURL: raw}).TokenSource()
		}
		_, err := try(t.Context(), &partnerauth.Transport{Source: static(pw), Origins: []string{raw}}, "/")
		h.failed("Origins", err)
	}
	for name, source := range sources {
		_, err := source.Token()
		h.failed(name, err)
		_, err = try(t.Context(), &partnerauth.Transport{Source: source}, "/")
		h.failed(name+", Transport", err)
	}
}

// What a hostile server has heard, and can say again.
type heard struct {
	path, authorization, credentials, body string
	secret                                 string // of the answer alone
}

// echo is everything.
func (e heard) echo() string {
	return strings.NewReplacer("\r", "", "\n", "").Replace(strings.Join([]string{e.authorization, e.credentials, e.body, e.secret}, " "))
}

// respond writes an answer that ends with its connection.
func respond(status int, body string, header ...string) string {
	return fmt.Sprintf("HTTP/1.1 %d Whatever\r\n%s\r\n%s", status, strings.Join(append(header, ""), "\r\n"), body)
}

// digits is s as a number.
func digits(s string) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ""), "[]")
}

const pipeURL = "http://localhost"

// overPipes is a Base of net/http whose connections lead to a server that
// writes whatever answer returns, well formed or not.
func overPipes(answer func(heard) string) *http.Transport {
	serve := func(conn net.Conn) {
		defer conn.Close()
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		e := heard{path: req.URL.Path, authorization: req.Header.Get("Authorization"), body: string(body)}
		if id, secret, ok := req.BasicAuth(); ok {
			e.credentials = id + ":" + secret + " " + secret
		}
		e.authorization += req.Header.Get("X-Api-Key")
		var login struct{ Password, Secret, Refresh string }
		if json.Unmarshal(body, &login) == nil {
			e.credentials += login.Password + login.Secret + login.Refresh
		}
		io.WriteString(conn, answer(e))
	}
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go serve(server)
			return client, nil
		},
	}
}

// jsonOf is v as JSON.
func jsonOf(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

// fill writes an answer: {echo} is what the server was sent, in other forms as
// well, and {secret} one of its own.
func (e heard) fill(text string) string {
	return strings.NewReplacer("{echo}", e.echo(), "{json}", jsonOf(e.echo()), "{go}", fmt.Sprintf("%q", e.echo()), "{query}",
		url.QueryEscape(e.echo()),
		"{path}", url.PathEscape(e.echo()), "{secret}", e.secret, "{digits}", digits(e.secret)).Replace(text)
}

// hostile answers: each has in it what the server was sent, and a secret of its
// own.
var hostile = []struct {
	name   string
	works  bool   // as an answer to a caller, that is without an error
	answer string // to fill
}{
	{"400 that echoes", true, respond(400, "{echo}", "X-Echo: {echo}")},
	{"422 in JSON that echoes", true, respond(422, `{"message":{json},"error":{json}}`, "Content-Type: application/json")},
	{"401 that echoes", true, respond(401, "{echo}", "WWW-Authenticate: {echo}", "Set-Cookie: s={secret}")},
	{"403 of OAuth that echoes", true, respond(403, `{"error":{json},"error_description":{json},"error_uri":{json}}`,
		"Content-Type: application/json")},
	{"404 that echoes escaped", true, respond(404, "{query}{path}{go}")},
	{"429 that echoes", true, respond(429, "{echo}", "Retry-After: {secret}", "RateLimit: {echo}")},
	{"500 that echoes", true, respond(500, "{echo}")},
	{"a redirect that echoes", true, respond(302, "", "Location: https://evil.example/?{query}")},
	{"success is false", true, respond(200, `{"success":false,"message":{json},"data":{"token":"{secret}"}}`)},
	{"not JSON", true, respond(200, "<html>{echo}")},
	{"JSON, then something else", true, respond(200, `{"x":1}{echo}`)},
	{"JSON of another type", true, respond(200,
		`{"token":["{secret}"],"access_token":{"{secret}":1},"data":{"token":{"{secret}":"{secret}"}}}`)},
	{"JSON with a number too large", true, respond(200, `{"access_token":{digits}e999,"data":{"token":{digits}e999}}`)},
	{"a token of another type", true, respond(200, `{"access_token":"{secret}","token_type":"{secret}","success":false}`)},
	{"a token that cannot be sent", true, respond(200, `{"access_token":"{secret}\n","data":{"token":"{secret}\n"}}`)},
	{"an expiry that is none", true, respond(200, `{"data":{"token":"","expiresAt":"{secret}"},"expires_in":"{secret}"}`,
		"Date: {secret}")},
	{"too large", true, respond(200, "{echo}"+strings.Repeat(" ", 1<<20)+"{echo}")},
	{"too large 401", true, respond(401, "{echo}"+strings.Repeat(" ", 1<<20)+"{echo}")},
	{"cut", true, "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{echo}"},
	{"a bad chunk", true, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{echo}\r\n"},
	{"gzip that is none", true, respond(200, "{echo}", "Content-Encoding: gzip")},
	{"an odd reason", true, "HTTP/1.1 401 {echo}\r\nContent-Length: 0\r\n\r\n"},
	{"no answer", false, ""},
	{"no HTTP", false, "{echo}\r\n\r\n"},
	{"a bad version", false, "HTTP/{echo} 200 OK\r\n\r\n"},
	{"a bad status", false, "HTTP/1.1 {echo}\r\n\r\n"},
	{"a bad header", false, "HTTP/1.1 200 OK\r\n{echo}\r\n\r\n"},
	{"a bad length", false, "HTTP/1.1 200 OK\r\nContent-Length: {echo}\r\n\r\n"},
	{"a bad encoding", false, "HTTP/1.1 200 OK\r\nTransfer-Encoding: {echo}\r\n\r\n"},
}

// No error of a token request, and nothing exported of it, has in it what was
// sent or, but for the *oauth2.RetrieveError itself, what came back.
func TestSecretsInTokenErrors(t *testing.T) {
	t.Parallel()
	for i, test := range hostile {
		for j, pr := range providers {
			if !strings.HasPrefix(test.answer, "HTTP/1.1 200") && i%len(providers) != j {
				continue // no ReadToken sees it, so one provider stands for all
			}
			what := pr.name + ", " + test.name
			bubble(t, what, func(t *testing.T) {
				h, rec := newHunt(t), newRecording()
				secret, credential, token := h.plantAnswer("answer"), h.plant("credential"), rand.Text()+rand.Text()
				h.watch("answer in digits", digits(secret), true)
				h.watch("Basic pair", base64.StdEncoding.EncodeToString([]byte("acme:"+credential)), false)
				h.watch("token", token, false)
				logins := 0
				rt := rec.transport(overPipes(func(e heard) string {
					e.secret = secret
					if e.path == "/" {
						return respond(200, "")
					}
					if logins++; logins == 1 {
						return respond(200, granted(token, 1000*time.Second))
					}
					return e.fill(test.answer)
				}))
				rt.Source = pr.config(credentials{id: "acme", secret: credential, baseURL: pipeURL}).TokenSource()
				// the token is new, then due and good for 100 s more, then over
				for _, wait := range []time.Duration{0, 900 * time.Second} {
					time.Sleep(wait)
					resp, err := rt.RoundTrip(newRequest(t, "GET", pipeURL+"/", ""))
					if err == nil { // a 429 to the refresh pauses calls, too
						h.answered(what, resp)
						resp.Body.Close()
					} else {
						h.failed(what, err)
					}
				}
				time.Sleep(24 * time.Hour)
				_, err := rt.RoundTrip(newRequest(t, "GET", pipeURL+"/", ""))
				h.failed(what, err)
				op := authOf(err).Op
				errorIf(t, op != "login" && op != pr.renews, "%s: got a %T with Op %q, want an *AuthError of a login", what, err, op)
				h.exported(what, rec)
				h.printed("the Source", rt.Source)
			})
		}
	}
}

// What a hostile server says to a caller is the caller's, in an answer or in the
// error that the Base makes of it. But it is in no span, and our token is in
// neither.
func TestSecretsInCalls(t *testing.T) {
	for _, test := range hostile {
		bubble(t, test.name, func(t *testing.T) {
			h := newHunt(t)
			secret, token := h.plantAnswer("answer"), rand.Text()+rand.Text()
			h.watch("token", token, false)
			query, user, password := h.plant("query value"), h.plant("user in the URL"), h.plant("password in the URL")
			rec := newRecording()
			rt := rec.plain(overPipes(func(e heard) string { e.secret = secret; return e.fill(test.answer) }), pipeURL)
			rt.Source = static(token)
			req := newRequest(t, "POST", pipeURL, h.plant("request body"))
			req.Header.Set("X-Secret", url.QueryEscape(h.plant("header")))
			req.URL.User, req.URL.Fragment = url.UserPassword(user, password), query
			req.URL.RawQuery = url.Values{"a": {query}, "b": {"x", query}}.Encode() + "&" + url.QueryEscape(query)
			resp, err := rt.RoundTrip(req)
			switch {
			case !test.works:
				ours := newHunt(t)
				ours.watch("token", token, false)
				ours.failed(test.name, err)
			case err != nil:
				t.Errorf("%s: %v", test.name, err)
			default:
				resp.Body.Close()
				a := resp.Request.Header["Authorization"]
				errorIf(t, a != nil || strings.Contains(fmt.Sprint(resp.Request.Header), token),
					"%s: resp.Request has Authorization %q", test.name, a)
			}
			h.exported(test.name, rec)
		})
	}
}

// A source of the user's own may fail with the whole answer in its error. What
// an AuthError makes of it is safe all the same.
func TestSecretsInCustomErrors(t *testing.T) {
	h := newHunt(t)
	body := h.plantAnswer("answer")
	raw := func() *oauth2.RetrieveError {
		return &oauth2.RetrieveError{
			Response:  &http.Response{Status: "401 Unauthorized", StatusCode: 401, Header: http.Header{"X-Answer": {body}}},
			Body:      []byte(`{"error":"` + body + `"}`),
			ErrorCode: body, ErrorDescription: body, ErrorURI: "https://x.example/?" + body,
		}
	}
	for name, err := range map[string]error{
		"bare":    raw(),
		"wrapped": fmt.Errorf("my source: %w", raw()),
		"joined":  errors.Join(errors.New("my source"), raw()),
		"url":     &url.Error{Op: "Post", URL: "https://x.example/token", Err: raw()},
	} {
		rec := newRecording()
		rt := rec.plain(new(partner))
		rt.Source = tokenFunc(func() (*oauth2.Token, error) { return nil, err })
		_, got := try(t.Context(), rt, "/")
		auth, is := errors.AsType[*partnerauth.AuthError](got)
		_, unwraps := errors.AsType[*oauth2.RetrieveError](got)
		if !is || !unwraps {
			t.Fatalf("%s: got %v, want an *AuthError that unwraps to the source's own", name, got)
		}
		h.everyVerb(name+": the *AuthError", auth)
		h.everyVerb(name+": the AuthError as a value", *auth)
		h.printed(name+": the AuthError in a struct", struct{ E error }{auth})
		h.exported(name, rec)
	}
}

// The errors of waiting, refusal and insecure URLs have no secret of the
// request in them either.
func TestSecretsInRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHunt(t)
		token, query, value := rand.Text()+rand.Text(), h.plant("query value"), h.plant("header")
		h.watch("token", token, false)
		rec := newRecording()
		rt := rec.plain(&partner{open: true})
		rt.Source, rt.Limiter = static(token), &partnerauth.Quota{Requests: 1}
		call := func(ctx context.Context, base string) error {
			req := newRequest(t, "GET", base+"/orders?q="+url.QueryEscape(query), "").WithContext(ctx)
			req.URL.User = url.UserPassword(query, query)
			req.Header.Set("X-Key", value)
			_, err := rt.RoundTrip(req)
			return err
		}
		must(t, call(t.Context(), apiURL))
		h.failed("ErrRateLimited", call(deadline(t, time.Second), apiURL))
		gone, cause := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cause(errors.New("shutting down")) })
		h.failed("canceled with a cause", call(gone, apiURL))
		h.failed("ErrInsecureURL", call(t.Context(), "http://api.example"))
		h.exported("refusals", rec)
	})
}
