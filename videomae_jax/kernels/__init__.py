"""Attention kernels written for one kind of device each; `videomae_jax.attention` chooses."""
