// Activations of the MLP on vectors of lanes.

#pragma once

#include "lanes.h"

namespace {

inline vf silu16(vf x) { return x / (1.0f + exp16(-x)); }

// Near zero, where the difference of two numbers near one would lose its digits, tanh's series. A NaN does not survive.
inline vf tanh16(vf x) {
    vf s = x * x;
    vf series = x * (1.0f + s * (-0.333333333f + s * (0.133333333f + s * (-0.0539682540f + s * 0.0218694885f))));
    vf ratio = 1.0f - 2.0f / (1.0f + exp16(2.0f * x));
    return s < 0.0625f ? series : ratio;
}

// x / 2 * (1 + tanh(u)), which is x * sigmoid(2 * u), with u = sqrt(2 / pi) * (x + 0.044715 * x^3).
inline vf tanh_gelu16(vf x) {
    vf u = 0.797884560802865f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp16(-2.0f * u));
}

// Eigen's ratio of polynomials, some ulp; from 3.92 on the nearest float32 is 1. A NaN does not survive.
inline vf erf16(vf x) {
    vf v = max16(x, splat(-4.0f));
    v = v < 4.0f ? v : splat(4.0f);
    vf s = v * v;
    vf p = splat(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    vf q = splat(-1.45660718464996e-05f);
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    vf ratio = v * p / q;
    ratio = x > 3.92f ? splat(1.0f) : ratio;
    return x < -3.92f ? splat(-1.0f) : ratio;
}

// x / 2 * (1 + erf(x / sqrt(2)))
inline vf gelu16(vf x) { return 0.5f * x * (1.0f + erf16(x * 0.707106781186548f)); }

}  // namespace
