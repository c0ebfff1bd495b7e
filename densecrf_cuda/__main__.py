"""`python -m densecrf_cuda` is the command `densecrf`."""

from densecrf_cuda.cli import main

if __name__ == "__main__":
    main()
