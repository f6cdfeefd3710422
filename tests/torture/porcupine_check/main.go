// Tells by its exit status whether a history of registers is linearizable: 0 it is, 1 it is not,
// 2 nobody knows. The history has one JSON object a line, as tests/torture/porcupine.py writes it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

const patience = 100 * time.Second

type row struct {
	Client   int     `json:"client"`
	Key      string  `json:"key"`
	Kind     string  `json:"kind"`
	Called   int64   `json:"called"`
	Returned *int64  `json:"returned"`
	Value    *string `json:"value"`
	Expected *string `json:"expected"`
	Swapped  bool    `json:"swapped"`
}

// register is the state of one key: nothing, or a value.
type register struct {
	isSet bool
	value string
}

func registerOf(value *string) register {
	if value == nil {
		return register{}
	}
	return register{true, *value}
}

// step tells whether an answer fits a register, and what the register holds afterwards. Porcupine
// hands input and output over apart; here both are the row.
func step(state, input, _ interface{}) (bool, interface{}) {
	before, operation := state.(register), input.(row)
	switch operation.Kind {
	case "read":
		return before == registerOf(operation.Value), before
	case "write":
		return true, registerOf(operation.Value)
	case "cas":
		swaps := before == registerOf(operation.Expected)
		fits := operation.Returned == nil || swaps == operation.Swapped
		if swaps {
			return fits, registerOf(operation.Value)
		}
		return fits, before
	}
	panic("unknown kind " + operation.Kind)
}

func partition(history []porcupine.Operation) [][]porcupine.Operation {
	byKey := map[string][]porcupine.Operation{}
	for _, operation := range history {
		key := operation.Input.(row).Key
		byKey[key] = append(byKey[key], operation)
	}
	parts := make([][]porcupine.Operation, 0, len(byKey))
	for _, part := range byKey {
		parts = append(parts, part)
	}
	return parts
}

func load(path string) ([]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var history []porcupine.Operation
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, err
		}
		returned := int64(math.MaxInt64) // an open operation may take effect at any later time
		if r.Returned != nil {
			returned = *r.Returned
		}
		history = append(history, porcupine.Operation{
			ClientId: r.Client, Input: r, Call: r.Called, Output: nil, Return: returned,
		})
	}
	return history, lines.Err()
}

func main() {
	history, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	model := porcupine.Model{
		Partition: partition,
		Init:      func() interface{} { return register{} },
		Step:      step,
	}
	switch porcupine.CheckOperationsTimeout(model, history, patience) {
	case porcupine.Ok:
		os.Exit(0)
	case porcupine.Illegal:
		os.Exit(1)
	}
	os.Exit(2)
}
