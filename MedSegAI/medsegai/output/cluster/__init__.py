"""The cases of a batch on several workers of `dask.distributed`, in processes on this computer or on others."""
