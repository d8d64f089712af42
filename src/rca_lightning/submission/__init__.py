"""Results in the forms that benchmark servers take."""
