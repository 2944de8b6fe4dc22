package partnerredis

import (
	"context"
	"runtime/debug"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/partnerauth/partnerauth/partnerredis"

// A gauge says whether Redis runs the script.
type gauge struct {
	metric.Int64Gauge
	options []metric.RecordOption
}

func newGauge(provider metric.MeterProvider, name string) gauge {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	g, err := provider.Meter(scope, metric.WithInstrumentationVersion(version())).Int64Gauge(
		"partnerauth.rate_limit.shared.reachable",
		metric.WithDescription("Whether the shared quota can be reached: 1, or 0 while Redis is away or refuses."),
		metric.WithUnit("1"))
	if err != nil {
		otel.Handle(err)
	}
	set := attribute.NewSet(attribute.String("partnerauth.rate_limit.name", name))
	return gauge{g, []metric.RecordOption{metric.WithAttributeSet(set)}}
}

// record is never called under a lock: an SDK is the user's.
func (g gauge) record(ctx context.Context, reachable bool) {
	if g.Int64Gauge == nil {
		return
	}
	n := int64(0)
	if reachable {
		n = 1
	}
	g.Record(ctx, n, g.options...)
}

// version is the module's, in the program that it was built into.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == scope {
			if m.Replace != nil {
				return m.Replace.Version
			}
			return m.Version
		}
	}
	return ""
}
