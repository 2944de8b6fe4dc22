package partnerauth

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"html"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
)

const redacted = "REDACTED"

// redactURL is u without anything that could be a secret: no user, no query
// values, no fragment. A pair of the query that has no name is all value.
func redactURL(u *url.URL) string {
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if u.User != nil {
		plain.User = url.UserPassword(redacted, redacted)
	}
	if u.RawQuery != "" {
		plain.RawQuery = queryPair.ReplaceAllString(u.RawQuery, "${1}"+redacted)
	}
	return plain.String()
}

var queryPair = regexp.MustCompile(`([^&=]*=)?[^&]*`)

// A reworded error is another one in all but its text, which had something in
// it that must not be shown. It keeps the other out of reach for errors.As.
type reworded struct {
	text, kind         string
	is                 func(target error) bool
	timeout, temporary bool
}

func (e *reworded) Error() string        { return e.text }
func (e *reworded) Is(target error) bool { return e.is(target) }
func (e *reworded) Timeout() bool        { return e.timeout }
func (e *reworded) Temporary() bool      { return e.temporary }
func (e *reworded) ErrorType() string    { return e.kind } // for semconv

// reword is err if text is what it says, else one that says text.
func reword(err error, text string) error {
	if text == err.Error() {
		return err
	}
	var t interface{ Temporary() bool }
	return &reworded{
		text:      text,
		kind:      typeOf(err),
		is:        func(target error) bool { return errors.Is(err, target) },
		timeout:   isTimeout(err),
		temporary: errors.As(err, &t) && t.Temporary(),
	}
}

// withoutSecrets is err without the secrets that its text repeats: net/http
// quotes the headers that it cannot parse, and a server can put there what it
// was sent.
func withoutSecrets(err error, secrets ...string) error {
	return reword(err, scrub(err.Error(), secrets...))
}

// withoutAnswer is err without what net/http quotes of an answer that it cannot
// parse.
func withoutAnswer(err error) error {
	if has[*tls.CertificateVerificationError](err) {
		return err
	}
	return reword(err, withoutQuoted(err.Error()))
}

// scrub cuts secrets out of foreign text, as they are and as Go, JSON and URLs
// write them. Text that has them in yet another form is cut as a whole.
func scrub(text string, secrets ...string) string {
	if len(text) > maxText {
		return redacted // searching it would take long, and nobody reads it
	}
	plain := text
	for range maxEscapes {
		plain = escapes.ReplaceAllStringFunc(html.UnescapeString(plain), unescape)
	}
	spaced := strings.ReplaceAll(plain, "+", " ")
	for _, secret := range secrets {
		if len(secret) < 4 {
			continue // it would be found in every other word
		}
		before := text
		inGo := strconv.Quote(secret)
		inJSON, _ := json.Marshal(secret)
		for _, form := range []string{secret, inGo[1 : len(inGo)-1], string(inJSON[1 : len(inJSON)-1]), url.QueryEscape(secret), url.PathEscape(secret)} {
			text = strings.ReplaceAll(text, form, redacted)
		}
		if text == before && (strings.Contains(plain, secret) || strings.Contains(spaced, secret)) {
			return redacted
		}
	}
	return text
}

// maxText is how long a foreign text is kept.
const maxText = 16 << 10

// escapes are the ways to write bytes or characters that unescape undoes, as
// often as maxEscapes one in the other.
var escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}|(\\u[0-9a-fA-F]{4})+|\\x[0-9a-fA-F]{2}|\\.`)

const maxEscapes = 3

func unescape(s string) string {
	if strings.HasPrefix(s, `\u`) && len(s) > 2 {
		var units []uint16
		for _, hex := range strings.Split(s[2:], `\u`) {
			n, _ := strconv.ParseUint(hex, 16, 16)
			units = append(units, uint16(n))
		}
		return string(utf16.Decode(units)) // which may be halves of one character
	}
	n, err := strconv.ParseUint(strings.TrimLeft(s, `%\x`), 16, 8)
	if len(s) == 2 || err != nil {
		return s[1:]
	}
	return string([]byte{byte(n)})
}
