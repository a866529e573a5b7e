module gateway.example/webhook-receiver

go 1.22

require gateway.example/guard v0.1.0

replace gateway.example/guard => ../../../sdks/go
