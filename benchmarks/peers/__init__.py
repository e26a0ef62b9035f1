"""Other ways to serve many classifiers, against which the load tests compare ours."""
