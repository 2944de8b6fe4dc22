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
	pink   = color.RGBA{0xfc, 0xec, 0xec, 0xff}
	blue   = color.RGBA{0x0b, 0x5c, 0xad, 0xff}
	grey   = color.RGBA{0x6b, 0x70, 0x75, 0xff}
	orange = color.RGBA{0xe0, 0x8a, 0x1e, 0xff}
	green  = color.RGBA{0x4f, 0xa0, 0x6a, 0xff}
)

// highest is where the picture ends.
const highest = 270

// draw makes the picture of what the server counted for each of the clients.
func draw(path string, counts [][]step) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%d goroutines that never stop, against a limit of %d requests in any minute", hungry, limit)
	p.Title.TextStyle.Font.Size = 13.5
	p.Title.Padding = 10
	p.X.Label.Text = "time (minutes)"
	p.Y.Label.Text = "requests in the last 60 s"
	p.X.Min, p.X.Max = 0, duration.Minutes()
	p.Y.Min, p.Y.Max = 0, highest
	p.X.Tick.Marker = ticks(duration.Minutes(), 0.5, 1)
	p.Y.Tick.Marker = ticks(200, 25, 50)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = 12
		axis.Tick.Label.Font.Size = 11
		axis.Padding = 0
	}
	p.Legend.Top = true
	p.Legend.TextStyle.Font.Size = 11
	p.Legend.ThumbnailWidth = 26
	p.Legend.XOffs, p.Legend.YOffs = -8, -4
	p.Legend.Padding = 2

	refused, err := plotter.NewPolygon(plotter.XYs{
		{X: 0, Y: limit}, {X: duration.Minutes(), Y: limit}, {X: duration.Minutes(), Y: highest}, {X: 0, Y: highest},
	})
	if err != nil {
		return err
	}
	refused.Color, refused.LineStyle.Width = pink, 0
	p.Add(refused)

	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = color.Gray{0xe4}
	p.Add(grid)

	most, err := plotter.NewLine(plotter.XYs{{X: 0, Y: limit}, {X: duration.Minutes(), Y: limit}})
	if err != nil {
		return err
	}
	most.Color, most.Width, most.Dashes = red, 1.2, []vg.Length{6, 4}

	entries := make([]*plotter.Line, len(clients))
	for i, c := range clients {
		line, err := plotter.NewLine(stairs(counts[i]))
		if err != nil {
			return err
		}
		line.Color, line.Width = []color.Color{orange, grey, green, blue}[i], 1.3
		if c.ours {
			line.Width = 2.6
			p.Add(most) // under ours, over the others
		}
		p.Add(line)
		entries[i] = line
	}
	for i := len(clients) - 1; i >= 0; i-- {
		steps := counts[i]
		p.Legend.Add(fmt.Sprintf("%s: at most %d", clients[i].name, peak(steps)), entries[i])
	}
	p.Legend.Add("the limit: what is above it gets 429", most)
	return save(p, path)
}

// save writes p with some space around it, in a font that everybody has.
func save(p *plot.Plot, path string) error {
	c := vgsvg.New(9*vg.Inch, 4.6*vg.Inch)
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
