package guard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	tolerance    = 300 * time.Second
	secretPrefix = "whsec_"
)

// Event is what a webhook is sent.
type Event struct {
	ID        string `json:"id"`
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	RequestID string `json:"request_id,omitempty"`
	APIKeyID  string `json:"api_key_id,omitempty"`
	Data      struct {
		Result   json.RawMessage `json:"result"`
		Metadata map[string]any  `json:"metadata"`
	} `json:"data"`
}

// VerifyWebhook returns the event, if it is from the gateway, unchanged and recent (Standard
// Webhooks). Body is exactly what came, before anything parsed it; secrets are all that are valid,
// of which there are two during a rotation. Its errors are ErrWebhook.
func VerifyWebhook(body []byte, header http.Header, secrets ...string) (*Event, error) {
	return verifyWebhookAt(time.Now(), body, header, secrets)
}

func verifyWebhookAt(now time.Time, body []byte, header http.Header, secrets []string) (*Event, error) {
	values := map[string]string{}
	for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		value := header.Get(name)
		if value == "" {
			return nil, untrusted("the header " + name + " is missing")
		}
		values[name] = value
	}
	seconds, err := strconv.ParseUint(values["webhook-timestamp"], 10, 63)
	if err != nil {
		return nil, untrusted("webhook-timestamp is not a number of seconds")
	}
	age := now.Sub(time.Unix(int64(seconds), 0))
	if age > tolerance || age < -tolerance {
		return nil, untrusted("signed too long ago or ahead: a replay, or the clock of this machine is wrong")
	}
	fits := false
	for _, secret := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
		if err != nil || len(key) == 0 {
			return nil, untrusted("a secret begins with whsec_ and is base64")
		}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(values["webhook-id"] + "." + values["webhook-timestamp"] + "."))
		mac.Write(body)
		expected := mac.Sum(nil)
		for _, one := range strings.Fields(values["webhook-signature"]) {
			text, ok := strings.CutPrefix(one, "v1,")
			if !ok {
				continue
			}
			given, err := base64.StdEncoding.DecodeString(text)
			// hmac.Equal takes as long whatever differs.
			if err == nil && hmac.Equal(given, expected) {
				fits = true
			}
		}
	}
	if !fits {
		return nil, untrusted("no signature fits: another secret, or the body was changed on its way. " +
			"Verify the bytes as they came, before anything parses them")
	}
	var event *Event // null leaves it nil
	if err := json.Unmarshal(body, &event); err != nil || event == nil {
		return nil, untrusted("signed, but the body is not an event")
	}
	return event, nil
}

func untrusted(message string) error { return &failure{kind: ErrWebhook, message: message} }
