"""Many runs: sweeps over settings, ablations of the data, comparisons."""
