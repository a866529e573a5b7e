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
	Metadata         map[string]any  `json:"metadata"`
	Details          json.RawMessage `json:"details"`
	FailedOpen       bool            `json:"-"`
	Meta             Meta            `json:"-"`
}

// Flagged says whether the policy in force says to stop this text.
func (d *Detection) Flagged() bool { return d.Decision == "flag" }

// Score is the bare score, without a policy.
type Score struct {
	Confidence  float64  `json:"confidence"`
	ThreatTypes []string `json:"threat_types"`
	Source      string   `json:"source"`
	Meta        Meta     `json:"-"`
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

// Job is a batch on its way, or done.
type Job struct {
	BatchID    string     `json:"batch_id"`
	Status     string     `json:"status"`
	Total      int        `json:"total"`
	Successful int        `json:"successful_count"`
	Failed     int        `json:"failed_count"`
	Flagged    int        `json:"flagged_count"`
	StatusURL  string     `json:"status_url"`
	CreatedAt  *time.Time `json:"created_at"`
	FinishedAt *time.Time `json:"finished_at"`
	Meta       Meta       `json:"-"`
}

// IsOver says whether nothing more will be judged.
func (j *Job) IsOver() bool { return j.Status != "queued" && j.Status != "processing" }

// Batch holds results for up to 100 texts, or the Job that makes them.
type Batch struct {
	Job
	Results []ItemResult `json:"results"`
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

// Policy is what counts as an attack for the calling key.
type Policy struct {
	ID            string              `json:"id,omitempty"`
	Version       int                 `json:"version,omitempty"`
	Mode          string              `json:"mode,omitempty"`
	OnUnavailable string              `json:"on_unavailable,omitempty"`
	Threshold     map[string]*float64 `json:"threshold,omitempty"`
	Locked        []string            `json:"locked,omitempty"`
	Categories    map[string]bool     `json:"categories,omitempty"`
	StoreText     bool                `json:"store_text,omitempty"`
	Meta          Meta                `json:"-"`
}

// Key is an API key; Key.Key is there only in the answer that made it.
type Key struct {
	ID        string     `json:"id,omitempty"`
	Name      string     `json:"name,omitempty"`
	Prefix    string     `json:"prefix,omitempty"`
	Last4     string     `json:"last4,omitempty"`
	Status    string     `json:"status,omitempty"`
	Scopes    []string   `json:"scopes,omitempty"`
	CIDRs     []string   `json:"allowed_cidrs,omitempty"`
	PerMinute int        `json:"rate_limit_per_minute,omitempty"`
	PerDay    int        `json:"rate_limit_per_day,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	Key       string     `json:"key,omitempty"`
	Meta      Meta       `json:"-"`
}

// Rotation is the successor of a key, and until when the old one works.
type Rotation struct {
	Key      Key `json:"api_key"`
	Previous struct {
		ID         string    `json:"id"`
		GraceUntil time.Time `json:"grace_until"`
	} `json:"previous"`
	Meta Meta `json:"-"`
}

// Webhook is an address that events are sent to; Secret is there only in the answer that made it.
type Webhook struct {
	ID          string   `json:"id,omitempty"`
	URL         string   `json:"url,omitempty"`
	Events      []string `json:"events,omitempty"`
	Description string   `json:"description,omitempty"`
	IsActive    *bool    `json:"is_active,omitempty"`
	Secret      string   `json:"secret,omitempty"`
	Meta        Meta     `json:"-"`
}
