module bench.example/answerer

go 1.26.0
