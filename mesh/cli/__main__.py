"""`python -m mesh.cli`: the client commands alone, without those that serve."""

from mesh.cli.application import application, run

if __name__ == "__main__":
    run(application())
