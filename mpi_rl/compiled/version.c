/* What the library was built of: setup.py says it, and kernels.py asks for it. */

const char *kernels_version(void)
{
    return KERNELS_VERSION;
}
