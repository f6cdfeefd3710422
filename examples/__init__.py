"""Programs that show how the library is used; all of them run in the tests."""
