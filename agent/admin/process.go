package admin

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/postern-proxy/postern/agent/secret"
)

// RegisterProcess registers what is known of the process itself: Go's runtime,
// the operating system's figures, the build, and the arena that holds the keys.
func RegisterProcess(reg prometheus.Registerer, version string) {
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_build_info", Help: "Always 1; the labels say what runs."},
		[]string{"version", "revision", "go_version"})
	info.WithLabelValues(version, revision(), runtime.Version()).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info,
		arena("postern_secret_arena_bytes", "Bytes mapped for key values, outside the Go heap.", func(s secret.ArenaStats) float64 { return float64(s.MappedBytes) }),
		arena("postern_secret_arena_values", "Values held in the arena.", func(s secret.ArenaStats) float64 { return float64(s.Values) }),
		arena("postern_secret_arena_locked", "1 if the arena is locked in memory and cannot be swapped.", func(s secret.ArenaStats) float64 { return flag(s.Locked) }),
		arena("postern_secret_arena_dontdump", "1 if the arena is left out of core dumps.", func(s secret.ArenaStats) float64 { return flag(s.DontDump) }))
}

func arena(name, help string, value func(secret.ArenaStats) float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(secret.Stats()) })
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
