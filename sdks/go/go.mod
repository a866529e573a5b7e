module gateway.example/guard

go 1.21
