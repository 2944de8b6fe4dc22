package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// display shows the run: a bar on a terminal, elsewhere a line for each order.
type display struct {
	out, errOut io.Writer

	mu   sync.Mutex
	bar  *progressbar.ProgressBar // nil: lines
	done chan struct{}
	wg   sync.WaitGroup
}

func newDisplay(out, errOut io.Writer, terminal bool, total int) *display {
	d := &display{out: out, errOut: errOut, done: make(chan struct{})}
	if !terminal || total == 0 {
		return d
	}
	d.bar = progressbar.NewOptions(total,
		progressbar.OptionSetWriter(out),
		progressbar.OptionSetDescription("orders"),
		progressbar.OptionSetWidth(30),
		progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetRenderBlankState(true),
	)
	// Orders come in bursts of as many as a minute allows; between them the clock has to go on, or it looks stuck.
	d.wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				d.mu.Lock()
				_ = d.bar.RenderBlank()
				d.mu.Unlock()
			case <-d.done:
				return
			}
		}
	})
	return d
}

// step counts an order that needed no work.
func (d *display) step() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bar != nil {
		_ = d.bar.Add(1)
	}
}

// created shows an order that exists now.
func (d *display) created(line int, e entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bar != nil {
		_ = d.bar.Add(1)
		return
	}
	fmt.Fprintf(d.out, "line %d: %s created as %s, tracking code %s\n", line, e.PartnerOrderID, e.ID, e.TrackingCode)
}

// problem shows why there is no order for a line. It goes above the bar.
func (d *display) problem(line int, partnerOrderID string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bar != nil {
		_ = d.bar.Clear()
	}
	fmt.Fprintf(d.errOut, "line %d: %s: %v\n", line, partnerOrderID, err)
	if d.bar != nil {
		_ = d.bar.Add(1)
	}
}

// close ends the bar where it stands.
func (d *display) close() {
	close(d.done)
	d.wg.Wait()
	if d.bar != nil {
		_ = d.bar.Exit()
		fmt.Fprintln(d.out)
	}
}
