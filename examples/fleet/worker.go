package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/internal/partnertest"
	"github.com/partnerauth/partnerauth/partnerredis"
	"github.com/redis/go-redis/v9"
)

const (
	workerVariable = "FLEET_WORKER"
	workerHeader   = "X-Worker" // by which the partner tells them apart
	hungry         = 20         // goroutines of a worker, for each way
)

// The two ways.
const (
	shared = iota // on Redis
	alone
)

// A job is what a worker reads from its standard input, which nobody else sees.
type job struct {
	Number   int
	Redis    string
	Account  string
	Key      []byte // seals tokens
	Partners [2]string
}

// work is a worker. It ends when its input does, so that it outlives no parent.
func work(stdin io.Reader) {
	var j job
	if json.NewDecoder(stdin).Decode(&j) != nil {
		return // the parent has ended already
	}
	if err := j.start(); err != nil {
		j.complain(err)
		os.Exit(1)
	}
	io.Copy(io.Discard, stdin)
}

func (j job) complain(err error) { fmt.Fprintf(os.Stderr, "worker %d: %v\n", j.Number, err) }

func (j job) start() error {
	o, err := redis.ParseURL(j.Redis)
	if err != nil {
		return err
	}
	client := redis.NewClient(o)
	store, err := partnerredis.NewStore(client, j.Key)
	if err != nil {
		return err
	}

	// What makes a process one of many: a Store and a Quota on Redis.
	one := partnerauth.NowPost{Email: j.Account, Password: partnertest.Password, BaseURL: j.Partners[alone]}
	many := one
	many.BaseURL, many.Store = j.Partners[shared], store
	j.ask(many, &partnerredis.Quota{Client: client, Name: j.Account, Requests: limit, Window: window})
	j.ask(one, &partnerauth.Quota{Requests: limit, Window: window})
	return nil
}

// ask asks the partner without a pause.
func (j job) ask(account partnerauth.NowPost, limiter partnerauth.Limiter) {
	client := &http.Client{Transport: &partnerauth.Transport{
		Source:  account.TokenSource(),
		Limiter: limiter,
		Base:    &http.Transport{MaxIdleConnsPerHost: hungry},
	}}
	var once sync.Once
	for range hungry {
		go func() {
			for {
				if err := j.get(client, account.BaseURL+"/api/v1/orders"); err != nil {
					once.Do(func() { j.complain(err) })
					time.Sleep(time.Second)
				}
			}
		}()
	}
}

func (j job) get(client *http.Client, url string) error {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	req.Header.Set(workerHeader, fmt.Sprint(j.Number))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// startFleet starts processes of this program and, when all are there, lets them begin.
func startFleet(n int, j job) (fleet []*exec.Cmd, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var inputs []io.Writer // which stay open until Wait
	for range n {
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), workerVariable+"=1")
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return fleet, err
		}
		if err := cmd.Start(); err != nil {
			return fleet, err
		}
		fleet, inputs = append(fleet, cmd), append(inputs, stdin)
	}
	for i, stdin := range inputs {
		j.Number = i + 1
		if err := json.NewEncoder(stdin).Encode(j); err != nil {
			return fleet, err
		}
	}
	return fleet, nil
}

// kill ends processes as kill -9 does, also those that have ended.
func kill(cmds []*exec.Cmd) {
	for _, cmd := range cmds {
		if cmd.Process != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
}
