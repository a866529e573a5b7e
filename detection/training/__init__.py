"""How the weights of the embedded detector are made. Never imported by the running gateway."""
