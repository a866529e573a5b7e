package guard

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"sort"
	"strings"
	"testing"
)

type body struct {
	What    string   `json:"what"`
	Type    string   `json:"type"`
	Body    string   `json:"body"`
	Base64  []byte   `json:"base64"`
	Texts   []string `json:"texts"`
	Refused int      `json:"refused"`
}

// TestBodies: JSONField reads JSON alone, in UTF-8 alone, and what is none never reaches the handler.
func TestBodies(t *testing.T) {
	var vectors []body
	read(t, "bodies.json", &vectors)
	for _, one := range vectors {
		t.Run(one.What, func(t *testing.T) {
			content := append([]byte(one.Body), one.Base64...)
			found, err := JSONField("message")(httptest.NewRequest("POST", "/", nil), content)
			if err != nil {
				if one.Refused == 0 && json.Valid(content) {
					t.Fatal(err)
				}
				return
			}
			if one.Refused == 400 {
				t.Fatal("was not refused")
			}
			if strings.Contains(one.Type, "form") {
				return // JSON that is a form as well, of which it has read the JSON
			}
			sort.Strings(found)
			sort.Strings(one.Texts)
			if one.Refused == 0 && fmt.Sprint(found) != fmt.Sprint(one.Texts) {
				t.Fatalf("%q, not %q", found, one.Texts)
			}
		})
	}
}

// TestWhateverAHandlerDecodesWasJudged: into a struct, nested ones too, into a map, or into anything.
func TestWhateverAHandlerDecodesWasJudged(t *testing.T) {
	bodies := []string{
		`{"message":"one"}`, `{"Message":"one"}`, `{"MESSAGE":"one","message":"two"}`, `{"meſſage":"one"}`,
		`{"message":"one","message":"two"}`, `{"message":"one"} x`, `{"message":"one"}{"message":"two"}`,
		`{"message":{"part":{"a":"one"},"PART":{"b":"two"}}}`,
		`{"message":{"part":{"a":"one"},"part":{"b":"two"}}}`, `{"message":{"part":{"a":"one"}},"Message":{"part":{"b":"two"}}}`,
		`{"x":{"message":"three"},"message":"one"}`, `{"m\u0065ssage":"\u006fne"}`, "\ufeff" + `{"message":"one"}`,
		`{"message":"one","n":1e999}`, `{"message":"one",}`, `[{"message":"one"}]`, `"one"`,
	}
	for _, content := range bodies {
		judged, err := JSONField("message")(nil, []byte(content))
		if err != nil {
			continue // it does not reach the handler
		}
		var flat struct{ Message string }
		var deep struct {
			Message struct{ Part struct{ A, B string } }
		}
		loose := map[string]any{}
		for _, into := range []any{&flat, &deep, &loose} {
			_ = json.NewDecoder(strings.NewReader(content)).Decode(into)
		}
		text, _ := loose["message"].(string)
		for _, one := range []string{flat.Message, deep.Message.Part.A, deep.Message.Part.B, text} {
			if one != "" && !strings.Contains(fmt.Sprintf("%q", judged), fmt.Sprintf("%q", one)) {
				t.Errorf("%s: a handler reads %q, judged was %q", content, one, judged)
			}
		}
	}
}

func TestNoBodyIsJudgedForEver(t *testing.T) {
	many := make([]string, textsMax+1)
	for n := range many {
		many[n] = fmt.Sprintf("%q", fmt.Sprint(n))
	}
	for _, content := range []string{
		`{"message":[` + strings.Join(many, ",") + `]}`, `{"message":` + strings.Repeat("[", 100_000),
	} {
		if found, err := JSONField("message")(nil, []byte(content)); err == nil {
			t.Fatal(len(found))
		}
	}
}
