from jprune import selection as selection
