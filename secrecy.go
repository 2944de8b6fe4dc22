package partnerauth

import (
	"crypto/tls"
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
// values, no fragment.
func redactURL(u *url.URL) string {
	var b strings.Builder
	path := u.EscapedPath()
	b.Grow(len(u.Scheme) + len(u.Host) + len(path) + 2*len(u.RawQuery) + 4*len(redacted))
	b.WriteString(u.Scheme)
	b.WriteString("://")
	if u.User != nil {
		b.WriteString(redacted + ":" + redacted + "@")
	}
	b.WriteString(u.Host)
	b.WriteString(path)
	separator := byte('?')
	for query := u.RawQuery; query != ""; separator = '&' {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		b.WriteByte(separator)
		// a pair without a name is all value
		if name, _, ok := strings.Cut(pair, "="); ok {
			b.WriteString(name)
			b.WriteByte('=')
		}
		b.WriteString(redacted)
	}
	return b.String()
}

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

// scrub cuts secrets out of foreign text. Text that has one in another form, as
// Go, JSON, HTML or URLs write it, is cut as a whole.
func scrub(text string, secrets ...string) string {
	if len(text) > maxText {
		return redacted // searching it would take long, and nobody reads it
	}
	for _, secret := range secrets {
		if len(secret) >= leastSecret {
			text = strings.ReplaceAll(text, secret, redacted)
		}
	}
	plain := unescaped(text)
	for _, secret := range secrets {
		if s := unescaped(secret); len(secret) >= leastSecret && s != "" && strings.Contains(plain, s) {
			return redacted
		}
	}
	return text
}

// leastSecret is how long a secret is that is looked for: shorter ones are in
// every other word.
const leastSecret = 4

// maxText is how long a foreign text is kept.
const maxText = 16 << 10

// escapes are the ways to write bytes or characters that unescape undoes.
var escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}|(\\u[0-9a-fA-F]{4})+|\\x[0-9a-fA-F]{2}|\\.`)

// maxEscapes is how many of them may be one in the other.
const maxEscapes = 3

// unescaped is text without escapes. It does the same to those that text is meant
// to have, so that only texts that both have been through can be compared.
func unescaped(text string) string {
	for range maxEscapes {
		text = escapes.ReplaceAllStringFunc(html.UnescapeString(text), unescape)
	}
	return strings.NewReplacer("+", " ", `\`, "").Replace(text)
}

func unescape(s string) string {
	if strings.HasPrefix(s, `\u`) && len(s) > 2 {
		var units []uint16
		for _, hex := range strings.Split(s[2:], `\u`) {
			n, _ := strconv.ParseUint(hex, 16, 16)
			units = append(units, uint16(n))
		}
		return string(utf16.Decode(units)) // which may be halves of one character
	}
	if r, _, _, err := strconv.UnquoteChar(s, '"'); err == nil && len(s) == 2 {
		return string(r)
	}
	n, err := strconv.ParseUint(strings.TrimLeft(s, `%\x`), 16, 8)
	if len(s) == 2 || err != nil {
		return s[1:]
	}
	return string([]byte{byte(n)})
}
