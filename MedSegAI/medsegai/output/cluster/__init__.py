"""The cases of a batch on several workers of `dask.distributed`, in processes of this computer or of others."""
