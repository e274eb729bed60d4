package main

import (
	"time"

	"github.com/schollz/progressbar/v3"

	"fpnode/api"
)

// meter shows how far long work is, on stderr, if that is a terminal.
type meter struct {
	a   *app
	bar *progressbar.ProgressBar
	of  string
	max int64
}

func (a *app) meter() *meter { return &meter{a: a} }

// show moves the meter to p.
func (m *meter) show(p api.Progress) {
	if m.a.errFd < 0 {
		return
	}
	max := p.Total
	if max == 0 {
		max = -1
	}
	if m.bar == nil || m.of != p.Stage {
		m.done()
		m.of, m.max = p.Stage, max
		m.bar = progressbar.NewOptions64(max,
			progressbar.OptionSetWriter(m.a.err),
			progressbar.OptionSetDescription("fpnode: "+cell(p.Stage)),
			progressbar.OptionSetWidth(24),
			progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(max > 0),
			progressbar.OptionSetSpinnerChangeInterval(0), // else a goroutine of its own draws, and outlives the bar
		)
	}
	if max != m.max {
		m.max = max
		m.bar.ChangeMax64(max)
	}
	m.bar.Set64(p.Done)
}

// done clears the meter.
func (m *meter) done() {
	if m.bar != nil {
		m.bar.Clear()
		m.bar.Exit()
		m.bar = nil
	}
}
