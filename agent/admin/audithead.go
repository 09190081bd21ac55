package admin

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// anchorEvery bounds the time series of postern_audit_anchor_info: 24 a day.
const anchorEvery = time.Hour

var (
	descHead   = prometheus.NewDesc("postern_audit_head_seq", "The newest audit entry's number; 0 before the first.", nil, nil)
	descAnchor = prometheus.NewDesc("postern_audit_anchor_info",
		"Always 1; head is SEQ:HASH of an audit entry, what `postern audit verify --head` takes. A new one at most once an hour.",
		[]string{"head"}, nil)
)

// NewAuditHead returns a collector of the audit chain's head. head may be called at
// any time; now is the clock, nil means time.Now. The hash is a label, so it is renewed
// only once an hour: any anchor shows rewriting up to it, and the number shows truncation after it.
func NewAuditHead(head func() (seq uint64, hash string), now func() time.Time) prometheus.Collector {
	if now == nil {
		now = time.Now
	}
	return &auditHead{head: head, now: now}
}

type auditHead struct {
	head func() (uint64, string)
	now  func() time.Time

	mu     sync.Mutex
	anchor string
	taken  time.Time
}

func (a *auditHead) Describe(ch chan<- *prometheus.Desc) {
	ch <- descHead
	ch <- descAnchor
}

func (a *auditHead) Collect(ch chan<- prometheus.Metric) {
	seq, hash := a.head()
	ch <- prometheus.MustNewConstMetric(descHead, prometheus.GaugeValue, float64(seq))
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); seq > 0 && (a.anchor == "" || now.Sub(a.taken) >= anchorEvery) {
		a.anchor, a.taken = strconv.FormatUint(seq, 10)+":"+hash, now
	}
	if a.anchor != "" {
		ch <- prometheus.MustNewConstMetric(descAnchor, prometheus.GaugeValue, 1, a.anchor)
	}
}
