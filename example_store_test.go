package partnerauth_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/partnerauth/partnerauth"
)

// A mapStore is a Store in memory. Its records reach no other process, so it is of use
// in tests only.
type mapStore struct {
	mu      sync.Mutex
	records map[string][]byte
	expires map[string]time.Time
	locked  map[string]bool
}

func (s *mapStore) Load(_ context.Context, key string) ([]byte, time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := time.Until(s.expires[key])
	if left <= 0 {
		return nil, 0, nil
	}
	return s.records[key], left, nil
}

func (s *mapStore) TryLock(_ context.Context, key string) (partnerauth.Lock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked[key] {
		return nil, nil // somebody else has it
	}
	s.locked[key] = true
	return mapLock{s, key}, nil
}

type mapLock struct {
	store *mapStore
	key   string
}

func (l mapLock) Save(_ context.Context, record []byte, good time.Duration) error {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	l.store.records[l.key], l.store.expires[l.key] = record, time.Now().Add(good)
	return nil
}

func (l mapLock) Unlock(context.Context) error {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	delete(l.store.locked, l.key)
	return nil
}

// Two clients, as of two processes, share a token by a Store: the second one does not
// sign in. Modules partnerredis and partnerfile have Stores for real use.
func ExampleStore() {
	logins := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stand-in for NowPost
		if r.URL.Path == "/api/v1/auth/login" {
			logins++
		}
		io.WriteString(w, `{"token":"a-token"}`)
	}))
	defer api.Close()

	store := &mapStore{records: map[string][]byte{}, expires: map[string]time.Time{}, locked: map[string]bool{}}
	shop := partnerauth.NowPost{Email: "shop@example.com", Password: "correct horse", BaseURL: api.URL, Store: store}
	for range 2 {
		resp, err := shop.Client().Get(api.URL + "/api/v1/orders")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println(resp.Status)
	}
	fmt.Println("logins:", logins)
	// Output:
	// 200 OK
	// 200 OK
	// logins: 1
}
