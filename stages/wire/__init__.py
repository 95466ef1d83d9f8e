"""Knowledge of packet headers that stages share: kernels, no stage."""
