package main

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"

	guard "gateway.example/guard"
)

var (
	secrets = strings.Fields(os.Getenv("WEBHOOK_SECRET")) // two while the secret is rotated
	seen    sync.Map                                      // in production: a column that is unique
)

func hook(writer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, 1<<20))
	if err != nil {
		writer.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	event, err := guard.VerifyWebhook(body, request.Header, secrets...)
	if err != nil {
		fmt.Println("refused:", err)
		writer.WriteHeader(http.StatusUnauthorized)
		return
	}
	if _, again := seen.LoadOrStore(event.ID, true); !again { // an event may come twice
		fmt.Println(event.Type, string(event.Data.Result)) // yours: put it into a queue
	}
	writer.WriteHeader(http.StatusNoContent)
}

func main() {
	http.HandleFunc("POST /hook", hook)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "8500"), nil))
}
