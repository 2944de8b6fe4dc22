package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/gofrs/flock"
)

// state is how far an order has come.
type state string

const (
	unknown    state = ""            // never tried
	sending    state = "sending"     // a request may be on its way, or may have been when the program ended: in doubt
	created    state = "created"     // the partner has it
	notCreated state = "not_created" // tried, and certain not to exist
)

// entry is one line of the journal.
type entry struct {
	PartnerOrderID string `json:"partner_order_id"`
	State          state  `json:"state"`
	ID             string `json:"id,omitempty"`
	TrackingCode   string `json:"tracking_code,omitempty"`
}

// journal is a file beside the sheet with a JSON line for each step of each order. The last line of an order counts.
// It is written before a request is sent, so that whatever ends the program, the next run knows which orders it must
// ask the partner about.
type journal struct {
	lock *flock.Flock
	mu   sync.Mutex
	file *os.File
	last map[string]entry
}

// openJournal reads the journal, or starts one. It fails while another run holds the same journal: the next one of a
// cron job would create the same orders.
func openJournal(path string) (*journal, error) {
	// A file of its own, because on Windows nobody may write to a locked one. It ends with the process and stays on the
	// disk: who removed it might remove the next run's.
	lock := flock.New(path + ".lock")
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, err
	case !locked:
		return nil, fmt.Errorf("%s: %w", path, errAtWork)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	j := &journal{lock: lock, file: file, last: map[string]entry{}}
	if err := j.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), j.Close())
	}
	return j, nil
}

var errAtWork = errors.New("another run is at work on this sheet")

func (j *journal) read() error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return err
	}
	// A line without its end was being written when the machine stopped, and nothing was done upon it yet.
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	if err := j.file.Truncate(int64(len(whole))); err != nil {
		return err
	}
	if _, err := j.file.Seek(int64(len(whole)), io.SeekStart); err != nil {
		return err
	}
	n := 0
	for line := range bytes.Lines(whole) {
		n++
		var e entry
		if err := json.Unmarshal(line, &e); err != nil || e.PartnerOrderID == "" {
			// Skipping it might create an order twice.
			return fmt.Errorf("line %d is not an entry of this program", n)
		}
		j.last[e.PartnerOrderID] = e
	}
	return nil
}

func (j *journal) state(partnerOrderID string) state {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last[partnerOrderID].State
}

// write returns when the entry is on the disk.
func (j *journal) write(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.last[e.PartnerOrderID] = e
	return nil
}

func (j *journal) Close() error { return errors.Join(j.file.Close(), j.lock.Unlock()) }
