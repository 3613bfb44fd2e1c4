"""The value of one field: ids, numbers, times, text, however a log writes them."""
