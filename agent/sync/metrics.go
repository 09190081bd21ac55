package sync

import (
	stdsync "sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern-proxy/postern/agent/rotation"
)

// Metrics are the figures of all Loops of a process, those of a configuration
// that is being replaced included: of two Loops with one name the younger one
// is shown. Labels come from the configuration only.
type Metrics struct {
	reads     *prometheus.CounterVec
	rotations *prometheus.CounterVec
	probes    *prometheus.CounterVec
	acks      *prometheus.CounterVec

	made time.Time // from when on Loops count the moments at which they look together

	mu    stdsync.Mutex
	loops []*Loop // in the order they were started
}

var (
	descVersions = desc("postern_key_versions", "Versions of a key that the agent did something with, by state.", "key", "state")
	descAge      = desc("postern_key_age_seconds", "Seconds since the newest active version was created.", "key")
	descUsable   = desc("postern_key_usable", "1 if requests can be served with the key.", "key")
	descStale    = desc("postern_key_stale_seconds", "Seconds since the last complete look into the store; 0 before the first.", "key")
	descActive   = desc("postern_key_version_active", "Number of the newest active version; 0 if there is none.", "key")
	descMissing  = desc("postern_key_source_missing", "1 if the store has nothing of the key, or not what serves any more.", "key")
	descOpen     = desc("postern_key_rotation_open", "1 while a rotation of the key is under way.", "key")
	descUnsaid   = desc("postern_key_audit_entries_waiting", "Audit entries about the key that could not be written yet.", "key")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// NewMetrics registers the metrics and panics if they are registered already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := newMetrics()
	r.MustRegister(m.reads, m.rotations, m.probes, m.acks, m)
	return m
}

func newMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		made:      time.Now(),
		reads:     counter("postern_store_reads_total", "Looks into the store and loads of versions, by outcome: ok or the kind of trouble.", "outcome"),
		rotations: counter("postern_rotations_total", "What became of versions: promoted, rejected, rolled_back, revoked.", "key", "outcome"),
		probes:    counter("postern_key_probes_total", "Probes of versions, by verdict: live, dead, unknown.", "key", "verdict"),
		acks:      counter("postern_ack_writes_total", "Entries about how far this agent is with open rotations: written, removed, failed.", "outcome"),
	}
	for _, outcome := range []string{ackWritten, ackRemoved, ackFailed} {
		m.acks.WithLabelValues(outcome)
	}
	return m
}

// read counts a look or a load.
func (m *Metrics) read(err error) {
	kind := kindOf(err)
	if kind == "" {
		kind = "ok"
	}
	m.reads.WithLabelValues(kind).Inc()
}

func (m *Metrics) add(l *Loop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loops = append(m.loops, l)
}

func (m *Metrics) remove(l *Loop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, o := range m.loops {
		if o == l {
			m.loops = append(m.loops[:i:i], m.loops[i+1:]...)
			return
		}
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descVersions, descAge, descUsable, descStale, descActive, descMissing, descOpen, descUnsaid} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	youngest := map[string]*Loop{}
	for _, l := range m.loops {
		youngest[l.o.Name] = l
	}
	m.mu.Unlock()
	for _, l := range youngest {
		collect(ch, l.Status())
	}
}

func collect(ch chan<- prometheus.Metric, s Status) {
	gauge := func(d *prometheus.Desc, v float64, state ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{s.Name}, state...)...)
	}
	flag := func(d *prometheus.Desc, on bool) {
		v := 0.0
		if on {
			v = 1
		}
		gauge(d, v)
	}
	count := map[string]int{}
	active, age := 0, 0.0
	for _, v := range s.Versions {
		if count[v.State]++; v.State == rotation.Active.String() && active == 0 {
			active, age = v.Number, v.Age // the newest
		}
	}
	for st := rotation.Pending; st <= rotation.Compromised; st++ {
		gauge(descVersions, float64(count[st.String()]), st.String())
	}
	if active > 0 {
		gauge(descAge, age)
	}
	gauge(descActive, float64(active))
	flag(descUsable, s.Usable)
	flag(descMissing, s.Missing)
	flag(descOpen, s.Open)
	gauge(descStale, s.Stale)
	gauge(descUnsaid, float64(s.Unrecorded))
}
