package partnerredis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/partnerauth/partnerauth"
	"github.com/redis/go-redis/v9"
)

var (
	errSlow   = errors.New("no answer within a second")
	errAnswer = errors.New("the script's answer makes no sense")
)

// trouble is what keeps Redis from running the script.
type trouble struct {
	text  string // nothing in it is the server's own
	kind  kind
	cause error
}

// kind is how a trouble ends.
type kind int

const (
	away     kind = iota // Redis, or the way to it: callers wait
	moving               // the keys move between two nodes of a Cluster: callers wait, for a moment
	demoted              // the client asks a node that may not answer: during a failover callers wait
	refusing             // waiting does not help: callers are told at once
)

// Errors that have no word.
const (
	unknown = "unknown command"
	tooMany = "max number of clients"
)

// answers are what a server says, by the word that its error begins with.
var answers = map[string]struct {
	kind kind
	text string
}{
	"LOADING":     {away, "it is loading its data"},
	"BUSY":        {away, "it is busy with another script"},
	"CLUSTERDOWN": {away, "the Cluster is down"},
	"MASTERDOWN":  {away, "the replica has lost its master"},
	"NOREPLICAS":  {away, "too few replicas are connected"},
	"TRYAGAIN":    {moving, "the slot is moving to another node"},
	"ASK":         {moving, "the slot is moving to another node"},
	"MOVED":       {demoted, "another node of the Cluster has the keys, which a ClusterClient would find"},
	"READONLY":    {demoted, "the server is a replica"},
	"WRONGPASS":   {refusing, "the user name or the password is wrong"},
	"NOAUTH":      {refusing, "a password is required"},
	"NOPERM":      {refusing, "the user may not run the script on these keys"},
	"OOM":         {refusing, "its memory is full"},
	"MISCONF":     {refusing, "it cannot save to disk"},
	"WRONGTYPE":   {refusing, "the keys hold something else"},
	"CROSSSLOT":   {refusing, "the keys are in different slots"},
	"NOPROTO":     {refusing, "the protocol is not supported"},
	unknown:       {refusing, "it does not run scripts"},
	tooMany:       {away, "it has no room for another connection"},
}

// phrases are in errors that do not begin with their word: those of scripts on
// servers before Redis 7, and of questions that are too long for a stranger.
var phrases = [][2]string{
	{"unauthenticated", "NOAUTH"},
	{"invalid password", "WRONGPASS"},
	{"can't run this command", "NOPERM"},
	{"can't access at least one of", "NOPERM"},
	{"-NOPERM ", "NOPERM"},
	{"-OOM ", "OOM"},
	{"-READONLY ", "READONLY"},
	{"-MISCONF ", "MISCONF"},
	{"-TRYAGAIN ", "TRYAGAIN"},
	{"-MOVED ", "MOVED"},
	{"max number of clients reached", tooMany},
	{"unknown command", unknown},
	{"unknown redis command", unknown},
}

// diagnose reads an error of the client.
func diagnose(err error) *trouble {
	if said, ok := errors.AsType[redis.Error](err); ok {
		return serverSaid(said.Error(), err)
	}
	t := &trouble{kind: away, cause: err}
	if network, ok := errors.AsType[*net.OpError](err); ok {
		t.text = network.Error()
	} else if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		t.text = certificate.Error()
	} else if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.text = "no answer in time"
	} else {
		t.text, t.kind = clientError(err)
	}
	return t
}

// serverSaid reads an error of the server.
func serverSaid(text string, cause error) *trouble {
	word, _, _ := strings.Cut(strings.TrimPrefix(text, "ERR "), " ")
	a, known := answers[word]
	for _, p := range phrases {
		if !known && strings.Contains(text, p[0]) {
			word = p[1]
			a, known = answers[word]
		}
	}
	if !known {
		return &trouble{"it answers with an error of its own", refusing, cause}
	}
	return &trouble{a.text + " (" + word + ")", a.kind, cause}
}

// clientError reads errors that are neither the server's nor the network's.
func clientError(err error) (string, kind) {
	switch {
	case err == errSlow, err == errAnswer, errors.Is(err, errPanic):
		return err.Error(), away
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "the connection was closed", away
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer in time", away
	case errors.Is(err, redis.ErrClosed):
		return "the client is closed", refusing
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return "no connection of the pool is free", away
	case strings.Contains(err.Error(), "sentinel"):
		return "no sentinel knows a master", away
	case strings.Contains(err.Error(), "cluster has no nodes"):
		return "no node of the Cluster answers", away
	}
	return fmt.Sprintf("the client failed (%T)", err), away
}

// network reports whether another node may have to be asked.
func (t *trouble) network() bool {
	_, said := errors.AsType[redis.Error](t.cause)
	return t.kind == away && !said || t.kind == away && redis.IsClusterDownError(t.cause)
}

func (t *trouble) String() string {
	switch t.kind {
	case away:
		return "Redis is away: " + t.text
	case moving:
		return "Redis is not ready: " + t.text
	}
	return "Redis refuses: " + t.text
}

// A refusal is the error of a caller whose turn would come too late, or that
// nobody can serve.
type refusal struct {
	wait    time.Duration // as far as it is known
	left    time.Duration // until the deadline
	trouble *trouble      // nil: none
	ended   error         // why the context has ended, if it was cancelled
}

func (e *refusal) Error() string {
	limited := "partnerredis: " + partnerauth.ErrRateLimited.Error() + ": "
	switch {
	case e.ended != nil:
		return limited + e.ended.Error() + "; " + e.trouble.String()
	case e.trouble != nil:
		return limited + e.trouble.String()
	case e.left <= 0:
		return limited + "the deadline passed while waiting"
	}
	return fmt.Sprintf("%sthe wait would be %v, the deadline is in %v",
		limited, e.wait.Round(time.Millisecond), e.left.Round(time.Millisecond))
}

func (e *refusal) Is(target error) bool {
	return target == partnerauth.ErrRateLimited || target == context.DeadlineExceeded
}

func (e *refusal) Unwrap() (errs []error) {
	if e.trouble != nil {
		errs = append(errs, e.trouble.cause)
	}
	if e.ended != nil {
		errs = append(errs, e.ended)
	}
	return errs
}

func (e *refusal) Timeout() bool             { return true }
func (e *refusal) RetryAfter() time.Duration { return e.wait }
