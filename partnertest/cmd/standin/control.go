package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/partnerauth/partnerauth/internal/partnertest"
)

// control returns what a tester does to the stand-ins over HTTP. The stand-ins
// do not count these requests.
func control(servers map[string]*partnertest.Server) http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, do func(s *partnertest.Server, w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if s := servers[r.PathValue("partner")]; s != nil {
				do(s, w, r)
				return
			}
			unknown(w, r)
		})
	}
	on("POST /{partner}/revoke", func(s *partnertest.Server, _ http.ResponseWriter, _ *http.Request) { s.RevokeAll() })
	on("POST /{partner}/faults", inject)
	on("DELETE /{partner}/faults", func(s *partnertest.Server, _ http.ResponseWriter, _ *http.Request) {
		s.ClearFaults()
		s.Release()
	})
	on("GET /{partner}/counts", func(s *partnertest.Server, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]int{
			"requests": s.Count("", ""), "logins": s.Logins(), "refreshes": s.Refreshes(), "peak": s.Peak(),
			"401": s.Status(http.StatusUnauthorized), "429": s.Status(http.StatusTooManyRequests),
		})
	})
	mux.HandleFunc("/", unknown)
	return mux
}

func unknown(w http.ResponseWriter, r *http.Request) {
	http.Error(w, fmt.Sprintf(`there is no %s %s here, but, for nowpost and ndovu:
POST   /nowpost/revoke
POST   /nowpost/faults
DELETE /nowpost/faults
GET    /nowpost/counts`, r.Method, r.URL.Path), http.StatusNotFound)
}

// inject puts a fault in force, unless its path is a slip of the pen.
func inject(s *partnertest.Server, w http.ResponseWriter, r *http.Request) {
	f, err := readFault(r.Body)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case !s.Reaches(f.Path):
		http.Error(w, fmt.Sprintf("no request has the path %q; the stand-in has\n%s", f.Path, strings.Join(s.Paths(), "\n")), http.StatusNotFound)
	default:
		s.Inject(f)
	}
}

// readFault reads a fault as this command's documentation describes it.
func readFault(body io.Reader) (partnertest.Fault, error) {
	var in struct {
		partnertest.Fault
		Delay  duration
		Header map[string]values
	}
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return partnertest.Fault{}, fmt.Errorf("the body is not a fault: %w", err)
	}
	f := in.Fault
	f.Method, f.Delay = strings.ToUpper(f.Method), time.Duration(in.Delay)
	if in.Header != nil {
		f.Header = http.Header{}
	}
	for name, all := range in.Header {
		f.Header[http.CanonicalHeaderKey(name)] = all
	}
	switch {
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return f, errors.New("status must be from 200 to 599")
	case f.Times < 0 || f.Huge < 0 || f.Delay < 0:
		return f, errors.New("times, huge and delay must not be negative")
	case f.Rate < 0 || f.Rate > 1:
		return f, errors.New("rate must be from 0 to 1")
	case f.Huge > 1<<30:
		return f, errors.New("huge must be at most 1073741824, which is 1 GiB")
	}
	return f, nil
}

// A duration is text such as "2s" or "1m30s".
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		return fmt.Errorf(`%s is not a duration such as "2s"`, b)
	}
	parsed, err := time.ParseDuration(text)
	*d = duration(parsed)
	if err != nil {
		return fmt.Errorf(`%s is not a duration such as "2s"`, b)
	}
	return nil
}

// values are those of a header: a string, or a list if there are several.
type values []string

func (v *values) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*v = values{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(v))
}
