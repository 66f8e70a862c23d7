"""``fedlearn job``: write, check, try, submit and watch jobs."""
