"""Results in the forms that benchmark servers take, and a check of them before they are uploaded."""
