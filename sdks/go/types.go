package guard

import (
	"encoding/json"
	"time"
)

// RateLimit is what is left of one limit; Limit and ResetSeconds are 0 where the gateway is silent.
type RateLimit struct {
	Name         string
	Limit        int64
	Remaining    int64
	ResetSeconds int64
}

// Meta is about the answer that an object came with.
type Meta struct {
	Status     int
	RequestID  string
	Attempts   int
	Replayed   bool
	RateLimits []RateLimit
}

// Config is what one request changes of its key's policy; zero values are left to that.
type Config struct {
	Threshold        *float64 `json:"confidence_threshold,omitempty"`
	ContentType      string   `json:"content_type,omitempty"`
	Mode             string   `json:"mode,omitempty"`
	OnUnavailable    string   `json:"on_unavailable,omitempty"`
	IncludeReasoning *bool    `json:"include_reasoning,omitempty"`
	DetailedResponse bool     `json:"detailed_response,omitempty"`
	TimeoutSeconds   *float64 `json:"timeout_seconds,omitempty"`
	UseCache         *bool    `json:"use_cache,omitempty"`
}

// Location is where the highest score stood: in which message, or at which path of a JSON text.
type Location struct {
	Message *int   `json:"message"`
	Path    string `json:"path"`
}

// Coverage is how much of a text was looked at; Unseen says what was not, and why.
type Coverage struct {
	ScannedChars int              `json:"scanned_chars"`
	TotalChars   int              `json:"total_chars"`
	Unseen       []map[string]any `json:"unseen"`
}

// PolicyRef is the policy in force, and which of its lists decided.
type PolicyRef struct {
	ID      string `json:"id"`
	Version int    `json:"version"`
	Matched string `json:"matched"`
}

// Detection is a verdict. FailedOpen: there is none, and the caller chose to go on without.
type Detection struct {
	RequestID        string          `json:"request_id"`
	IsMalicious      bool            `json:"is_malicious"`
	Confidence       float64         `json:"confidence"`
	ThreatTypes      []string        `json:"threat_types"`
	ProcessingTimeMS int64           `json:"processing_time_ms"`
	Reason           string          `json:"reason"`
	Threshold        float64         `json:"threshold"`
	ThresholdSource  string          `json:"threshold_source"`
	Decision         string          `json:"decision"`
	WouldFlag        *bool           `json:"would_flag"`
	Status           string          `json:"status"`
	Source           string          `json:"source"`
	DegradedReason   string          `json:"degraded_reason"`
	Cached           bool            `json:"cached"`
	CacheAgeSeconds  int64           `json:"cache_age_seconds"`
	Endpoint         string          `json:"endpoint"`
	Engine           string          `json:"engine"`
	Location         *Location       `json:"location"`
	Coverage         *Coverage       `json:"coverage"`
	Policy           *PolicyRef      `json:"policy"`
	Metadata         map[string]any  `json:"metadata"`
	Details          json.RawMessage `json:"details"`
	FailedOpen       bool            `json:"-"`
	Meta             Meta            `json:"-"`
}

func (d *Detection) isWhole() bool { return d.RequestID != "" && d.Decision != "" }

// Flagged says whether the policy in force says to stop this text.
func (d *Detection) Flagged() bool { return d.Decision == "flag" }

// Score is the bare score, without a policy.
type Score struct {
	Confidence  float64        `json:"confidence"`
	Categories  []Category     `json:"categories"`
	ThreatTypes []string       `json:"threat_types"`
	Source      string         `json:"source"`
	Detector    map[string]any `json:"detector"`
	Meta        Meta           `json:"-"`
}

func (s *Score) isWhole() bool { return s.Source != "" }

// Category is one kind of attack and how surely a text is one.
type Category struct {
	Type  string  `json:"type"`
	Score float64 `json:"score"`
}

// Item is one text of a batch.
type Item struct {
	ID       string         `json:"id"`
	Text     string         `json:"text"`
	Config   *Config        `json:"config,omitempty"`
	Metadata map[string]any `json:"metadata,omitempty"`
}

// ItemResult is a verdict (Status ok) or why there is none (Status error).
type ItemResult struct {
	ID     string     `json:"id"`
	Status string     `json:"status"`
	Result *Detection `json:"result"`
	Error  *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func (r *ItemResult) isWhole() bool {
	isTold := r.Error != nil
	if r.Result != nil {
		isTold = r.Result.isWhole()
	}
	return r.ID != "" && r.Status != "" && isTold
}

// Job is a batch on its way, or done.
type Job struct {
	BatchID    string         `json:"batch_id"`
	Status     string         `json:"status"`
	Total      int            `json:"total"`
	Successful int            `json:"successful_count"`
	Failed     int            `json:"failed_count"`
	Flagged    int            `json:"flagged_count"`
	StatusURL  string         `json:"status_url"`
	CreatedAt  *time.Time     `json:"created_at"`
	StartedAt  *time.Time     `json:"started_at"`
	FinishedAt *time.Time     `json:"finished_at"`
	ExpiresAt  *time.Time     `json:"expires_at"`
	WebhookURL string         `json:"webhook_url"`
	Metadata   map[string]any `json:"metadata"`
	Meta       Meta           `json:"-"`
}

func (j *Job) isWhole() bool { return j.BatchID != "" && j.Status != "" }

// IsOver says whether nothing more will be judged.
func (j *Job) IsOver() bool { return j.Status != "queued" && j.Status != "processing" }

// Batch holds results for up to 100 texts, or the Job that makes them.
type Batch struct {
	Job
	Results []ItemResult `json:"results"`
}

func (b *Batch) isWhole() bool {
	for n := range b.Results {
		if !b.Results[n].isWhole() {
			return false
		}
	}
	return b.Results != nil || b.Job.isWhole()
}

// Limits is what is left of each limit.
type Limits struct {
	Policies []struct {
		Name          string `json:"name"`
		Limit         int64  `json:"limit"`
		Remaining     int64  `json:"remaining"`
		ResetSeconds  int64  `json:"reset_seconds"`
		WindowSeconds int64  `json:"window_seconds"`
	} `json:"policies"`
	Meta Meta `json:"-"`
}

func (l *Limits) isWhole() bool { return l.Policies != nil }

// Policy is what counts as an attack for the calling key.
type Policy struct {
	ID            string           `json:"id,omitempty"`
	Version       int              `json:"version,omitempty"`
	Mode          string           `json:"mode,omitempty"`
	OnUnavailable string           `json:"on_unavailable,omitempty"`
	Threshold     map[string]any   `json:"threshold,omitempty"`
	Engines       map[string]any   `json:"engines,omitempty"`
	Locked        []string         `json:"locked,omitempty"`
	Categories    map[string]bool  `json:"categories,omitempty"`
	Allow         []map[string]any `json:"allow,omitempty"`
	Deny          []map[string]any `json:"deny,omitempty"`
	StoreText     bool             `json:"store_text,omitempty"`
	UpdatedAt     *time.Time       `json:"updated_at,omitempty"`
	Meta          Meta             `json:"-"`
}

func (p *Policy) isWhole() bool { return p.ID != "" && p.Mode != "" }

// Key is an API key; Key.Key is there only in the answer that made it.
type Key struct {
	ID         string     `json:"id,omitempty"`
	Name       string     `json:"name,omitempty"`
	Prefix     string     `json:"prefix,omitempty"`
	Last4      string     `json:"last4,omitempty"`
	Status     string     `json:"status,omitempty"`
	Scopes     []string   `json:"scopes,omitempty"`
	CIDRs      []string   `json:"allowed_cidrs,omitempty"`
	PerMinute  int        `json:"rate_limit_per_minute,omitempty"`
	PerDay     int        `json:"rate_limit_per_day,omitempty"`
	CreatedAt  *time.Time `json:"created_at,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	GraceUntil *time.Time `json:"grace_until,omitempty"`
	RevokedAt  *time.Time `json:"revoked_at,omitempty"`
	ReplacedBy string     `json:"replaced_by,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
	LastUsedIP string     `json:"last_used_ip,omitempty"`
	Tags       []string   `json:"tags,omitempty"`
	Owner      string     `json:"owner,omitempty"`
	IsTest     bool       `json:"is_test,omitempty"`
	Key        string     `json:"key,omitempty"`
	Meta       Meta       `json:"-"`
}

func (k *Key) isWhole() bool { return k.ID != "" && k.Prefix != "" }

// Rotation is the successor of a key, and until when the old one works.
type Rotation struct {
	Key      Key `json:"api_key"`
	Previous struct {
		ID         string    `json:"id"`
		GraceUntil time.Time `json:"grace_until"`
	} `json:"previous"`
	Meta Meta `json:"-"`
}

func (r *Rotation) isWhole() bool { return r.Key.isWhole() && r.Previous.ID != "" }

// Webhook is an address that events are sent to; Secret is there only in the answer that made it.
type Webhook struct {
	ID          string         `json:"id,omitempty"`
	URL         string         `json:"url,omitempty"`
	Events      []string       `json:"events,omitempty"`
	Description string         `json:"description,omitempty"`
	RetryCount  *int           `json:"retry_count,omitempty"`
	IsActive    *bool          `json:"is_active,omitempty"`
	CreatedAt   *time.Time     `json:"created_at,omitempty"`
	Health      map[string]any `json:"health,omitempty"`
	Secret      string         `json:"secret,omitempty"`
	Meta        Meta           `json:"-"`
}

func (w *Webhook) isWhole() bool { return w.ID != "" && w.URL != "" }
