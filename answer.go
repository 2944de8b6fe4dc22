package partnerauth

import (
	"errors"
	"net/http"
	"time"

	"golang.org/x/oauth2"
)

// read makes a lease of an answer, or an error that tells what is wrong with it.
func (f *fetch) read(resp *http.Response, body []byte, sent time.Time, pause time.Duration) fetched {
	received := time.Now()
	status := resp.StatusCode
	var token string
	var lifetime time.Duration
	var err error
	switch {
	case status >= 300 && status < 400:
		err = errors.New("a redirect, which is not followed")
	case status < 200 || status > 299:
		got := f.failed(status, f.refusal(resp, refusal(resp, body)))
		got.err.RetryAfter = pause
		got.again = status == http.StatusTooManyRequests || status >= 500 && pause <= maxUnavailable
		return got
	case len(body) > maxAnswer:
		err = errors.New("the answer is larger than 1 MiB")
	default:
		token, lifetime, err = f.source.provider.read(body, resp.Header)
	}
	switch {
	case err != nil:
	case len(token) > maxToken:
		err = errors.New("the token is longer than 16 KiB")
	case !sendable(token):
		err = errors.New("the token has characters that a header cannot have")
	}
	if err != nil {
		return f.failed(status, &answerError{statusText(status) + ": " + err.Error(), false, f.answer(resp)})
	}
	return fetched{lease: newLease(token, min(lifetime, maxLifetime), sent, received)}
}

// refusal is what is wrong with an answer of status 4xx or 5xx. Where that is the
// credentials, the partner's page may say more.
func (f *fetch) refusal(resp *http.Response, refused bool) error {
	reason := statusText(resp.StatusCode)
	if why := f.source.provider.hints[resp.StatusCode]; why != "" && refused {
		reason += ": " + why
	}
	return &answerError{reason, refused, f.answer(resp)}
}

func (f *fetch) failed(status int, err error) fetched {
	return fetched{err: &AuthError{Provider: f.source.provider.name, Op: f.op, StatusCode: status, Err: err}}
}

// answer keeps of resp the little that helps to find out what went wrong.
func (f *fetch) answer(resp *http.Response) *oauth2.RetrieveError {
	header := http.Header{}
	for _, name := range []string{"Content-Type", "Date", "Retry-After", "X-Request-Id"} {
		if v := resp.Header.Get(name); v != "" && len(v) <= maxField {
			header.Set(name, scrub(v, f.secrets()...))
		}
	}
	return &oauth2.RetrieveError{Response: &http.Response{
		Status: statusText(resp.StatusCode), StatusCode: resp.StatusCode,
		Proto: resp.Proto, ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
		Header: header, Body: http.NoBody,
	}}
}

// secrets are all that may come back in an answer.
func (f *fetch) secrets() []string {
	secrets := f.source.provider.secrets(f.secret)
	if f.renews != nil {
		secrets = append(secrets, f.renews.token.AccessToken)
	}
	return secrets
}
