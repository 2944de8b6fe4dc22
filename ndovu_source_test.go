package partnerauth_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestNdovuAuthOnTheWire(t *testing.T) {
	t.Parallel()
	for proto, useTLS := range wires {
		for _, pair := range [][2]string{
			{"client-1", "plain"}, {"client-1", "a:b+c/d%e&f g=h?i#j"}, {"client-1", "::"}, {"client-1", "%2B%2F already escaped +"},
			{"client-1", "sécret 密钥 🔑"}, {"client-1", " leading"}, {"client-1", `quote " backslash \`},
			{"client-1", "bytes \xff\xfe that are no UTF-8"}, {"client-1", strings.Repeat("long", 500)},
			{"id with space + % / & é", "secret"},
		} {
			id, secret := pair[0], pair[1]
			server := partnertest.StartNdovu(partnertest.Options{TLS: useTLS, ClientID: id, ClientSecret: secret})
			defer server.Close()
			base := server.Transport()
			defer base.CloseIdleConnections()
			_, err := partnerauth.Ndovu{ClientID: id, ClientSecret: secret, BaseURL: server.URL, Base: base}.TokenSource().Token()
			seen := server.Requests()
			if err != nil || len(seen) != 1 {
				t.Fatalf("%q: got %v after %d requests, want a token of one", pair, err, len(seen))
			}
			basic := base64.StdEncoding.EncodeToString([]byte(id + ":" + secret))
			checkWire(t, seen[0], proto, authPath, "", "Authorization: Basic "+basic)
		}
	}
}

// FuzzNdovuAnswer feeds an answer to a Source: an error that names the
// operation, or a token that can be sent.
func FuzzNdovuAnswer(f *testing.F) {
	fuzzAnswer(f, providers[1],
		`{"access_token":"eyJ.eyJ.x","expires_in":3600,"token_type":"Bearer"}`, `{"access_token":"t","expires_in":1e400}`,
		`{"access_token":"t","expires_in":1.7976931348623157e308}`, `{"access_token":"t","expires_in":9223372036854775807}`,
		`{"access_token":"t","expires_in":-1e300}`,
		`{"access_token":"t","expires_in":1e-12}`, `{"access_token":"t","expires_in":"60"}`, `{"access_token":"t","token_type":"mac"}`,
		`{"access_token":"a\nb"}`,
		`{"access_token":"`+jwt(`{"iat":1700000000,"exp":1700007200}`)+`"}`, `{"access_token":"`+jwt(`{"iat":-1e308,"exp":1e308}`)+`"}`,
	)
}
