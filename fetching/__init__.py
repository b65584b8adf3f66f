"""Files from elsewhere: who may be asked, and how what comes is checked and kept. For the api and the worker; knows no torch."""
