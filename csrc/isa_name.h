// THERMOSPHERE_ISA_NAME(x_) is x_v4 in a file compiled for x86-64-v4.
#pragma once

#define THERMOSPHERE_JOIN2(a, b) a##b
#define THERMOSPHERE_JOIN(a, b) THERMOSPHERE_JOIN2(a, b)
#define THERMOSPHERE_ISA_NAME(stem) THERMOSPHERE_JOIN(stem, THERMOSPHERE_ISA)
