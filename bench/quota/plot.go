package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

var (
	red    = color.RGBA{0xc6, 0x28, 0x28, 0xff}
	pink   = color.RGBA{0xfd, 0xf0, 0xf0, 0xff}
	blue   = color.RGBA{0x0b, 0x5c, 0xad, 0xff}
	sky    = color.RGBA{0xe6, 0xf0, 0xfa, 0xff}
	grey   = color.RGBA{0x5f, 0x64, 0x69, 0xff}
	orange = color.RGBA{0xb8, 0x66, 0x00, 0xff}
	green  = color.RGBA{0x2f, 0x80, 0x4b, 0xff}
	black  = color.RGBA{0x22, 0x22, 0x22, 0xff}
)

const (
	highest = 225 // where the picture ends
	small   = 10  // points of a label
)

// draw makes the picture of what the server counted for each of the clients.
func draw(path string, counts [][]step) error {
	p := axes("time (minutes)", "requests in the last 60 s", duration.Minutes(), highest)
	p.Title.Text = fmt.Sprintf("partnerauth never exceeds %d requests in any minute", limit)
	p.X.Tick.Marker = ticks(duration.Minutes(), 0.5, 1)
	p.Y.Tick.Marker = ticks(200, 25, 50)

	refused, err := plotter.NewPolygon(plotter.XYs{
		{X: 0, Y: limit}, {X: duration.Minutes(), Y: limit}, {X: duration.Minutes(), Y: highest}, {X: 0, Y: highest},
	})
	if err != nil {
		return err
	}
	refused.Color, refused.LineStyle.Width = pink, 0
	p.Add(refused)

	ours := len(clients) - 1
	area, err := plotter.NewLine(stairs(counts[ours]))
	if err != nil {
		return err
	}
	area.FillColor, area.Width = sky, 0
	p.Add(area)
	return add(p, path, 4.6*vg.Inch,
		curve{orange, 1.3, nil, stairs(counts[0])},
		curve{green, 1.3, nil, stairs(counts[1])},
		curve{blue, 2.4, nil, stairs(counts[ours])},
		// The limit is above all, in dashes, so that ours shows between them.
		curve{red, 1.6, []vg.Length{9, 7}, plotter.XYs{{X: 0, Y: limit}, {X: duration.Minutes(), Y: limit}}},
		// from the first dip to its label
		curve{black, 0.6, nil, plotter.XYs{{X: 1.07, Y: 26}, {X: 1.18, Y: 26}}},

		label{1.06, 188, orange, fmt.Sprintf("rate.Limiter, 100 a minute, burst 100: up to %d in a minute", peak(counts[0]))},
		label{2.85, 150, red, "up here the server answers 429"},
		label{2.85, 106, red, fmt.Sprintf("the limit: %d in any minute", limit)},
		label{1.2, 54, green, "rate.Limiter, 80 a minute,\nburst 20: a fifth unused"},
		label{0.1, 87, blue, fmt.Sprintf("partnerauth: up to %d", peak(counts[ours]))},
		label{1.2, 13, black, "Each dip: a place is used\nagain only 61 s after the\nanswer to its request."},
	)
}

// drawLight makes the picture of what a stray 429 costs a service that makes ten
// calls at once each minute.
func drawLight(path string, now []float64) error {
	const minutes, seconds = lightMinutes - 3, 6.6
	p := axes("minutes since the 429", "longest call (seconds)", minutes, seconds)
	p.Title.Text = "Ten calls at once each minute, one of them refused once with 429"
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks(minutes, 1, 5), ticks(6, 1, 2)
	return add(p, path, 2.9*vg.Inch,
		curve{orange, 1.6, nil, sinceStray(beforeBurst10)},
		curve{grey, 1.6, nil, sinceStray(before)},
		curve{blue, 2.6, nil, sinceStray(now)},

		label{11.2, 5.1, orange, "version 0.1 with Burst 10: over 2 s for half an hour"},
		label{5.3, 1.0, grey, "version 0.1: slow for a quarter of an hour"},
		label{15.2, 0.35, blue, fmt.Sprintf("now: %.1f s once, then %.0f ms as before", now[stray/lightCalls], now[len(now)-1]*1000)},
	)
}

// sinceStray makes points of what happened from the minute of the 429 on.
func sinceStray(seconds []float64) (xys plotter.XYs) {
	for i, y := range seconds[stray/lightCalls:] {
		xys = append(xys, plotter.XY{X: float64(i), Y: y})
	}
	return xys
}

// axes is an empty picture.
func axes(x, y string, right, top float64) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.TextStyle.Font.Size = 13.5
	p.Title.Padding = 10
	p.X.Label.Text, p.Y.Label.Text = x, y
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, right, 0, top
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = 12
		axis.Tick.Label.Font.Size = 11
		axis.Padding = 0
	}
	return p
}

// A mark is something to draw.
type mark interface{ add(*plot.Plot) error }

// add draws the marks and saves the picture.
func add(p *plot.Plot, path string, height vg.Length, marks ...mark) error {
	for _, m := range marks {
		if err := m.add(p); err != nil {
			return err
		}
	}
	return save(p, path, height)
}

// A curve is a line through points.
type curve struct {
	color  color.Color
	width  vg.Length
	dashes []vg.Length // nil: none
	along  plotter.XYs
}

func (c curve) add(p *plot.Plot) error {
	line, err := plotter.NewLine(c.along)
	if err != nil {
		return err
	}
	line.Color, line.Width, line.Dashes = c.color, c.width, c.dashes
	p.Add(line)
	return nil
}

// A label is text that begins at a point where nothing else is, with room for
// fonts that are wider than the one it was measured in.
type label struct {
	x, y  float64 // of its lower left corner
	color color.Color
	text  string
}

func (l label) add(p *plot.Plot) error {
	labels, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: l.x, Y: l.y}}, Labels: []string{l.text}})
	if err != nil {
		return err
	}
	style := &labels.TextStyle[0]
	style.Color, style.Font = l.color, plot.DefaultFont
	style.Font.Size = small
	p.Add(labels)
	return nil
}

// save writes p with some space around it, in a font that everybody has.
func save(p *plot.Plot, path string, height vg.Length) error {
	c := vgsvg.New(9*vg.Inch, height)
	all := vgdraw.New(c)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	p.Draw(vgdraw.Crop(all, 8, -16, 8, -10))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return err
	}
	text := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif"))
	return os.WriteFile(path, text, 0o644)
}

// stairs are the corners of a line that changes only at its steps. Steps that
// are too close to be seen are one, so that the file is small.
func stairs(steps []step) plotter.XYs {
	const least = 50 * time.Millisecond
	var xys plotter.XYs
	last := steps[0]
	for i, s := range steps {
		if i > 0 && i < len(steps)-1 && s.at-last.at < least && steps[i+1].at-s.at < least {
			continue
		}
		xys = append(xys, plotter.XY{X: s.at.Minutes(), Y: float64(last.count)}, plotter.XY{X: s.at.Minutes(), Y: float64(s.count)})
		last = s
	}
	return xys
}

// ticks has a mark at every small step, and a number at every large one.
func ticks(end, small, large float64) plot.ConstantTicks {
	var t plot.ConstantTicks
	for i := 0; float64(i)*small <= end; i++ {
		tick := plot.Tick{Value: float64(i) * small}
		if n := tick.Value / large; n == float64(int(n)) {
			tick.Label = fmt.Sprint(tick.Value)
		}
		t = append(t, tick)
	}
	return t
}
