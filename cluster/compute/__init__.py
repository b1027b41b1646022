"""Running experts and trunk layers on kernels."""
