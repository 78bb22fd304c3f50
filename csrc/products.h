// Counts the products that kernels execute: those of the convolution, those with padding that remain, and those of empty lanes.
#pragma once

#include "kernels/brgemm/layout.h"
#include "kernels/channels_layout.h"
#include "kernels/gemm/layout.h"
#include "kernels/low/gradient.h"
#include "kernels/low/low.h"
#include "kernels/narrow/layout.h"
#include "kernels/pixels/layout.h"
#include "kernels/planar/layout.h"
#include "kernels/stem/layout.h"

namespace groupwise {

int64_t executed_products(const CorrelationShape& c, const CorrelationLayout& l, int64_t lanes);
int64_t executed_products_narrow(const CorrelationShape& c, const ChannelsLayout& l, int64_t lanes);
int64_t executed_products_groups(const CorrelationShape& c, const ChannelsLayout& l, int64_t lanes, bool dots);
int64_t executed_products(const GradWeightShape& work, const GradWeightLayout& l, int64_t lanes);
int64_t executed_products(const GradWeightShape& work, const GradWeightChannelsLayout& l, int64_t lanes);
int64_t executed_products(const GradWeightShape& work, const PanelsLayout& l, int64_t lanes);
int64_t executed_products(const GradWeightShape& work, const GradWeightNarrowLayout& l, int64_t lanes);
int64_t executed_products(const CorrelationShape& c, const BrgemmLayout& l);
int64_t executed_products(const CorrelationShape& c, const GemmLayout& l);
int64_t executed_products(const CorrelationShape& c, const StemLayout& l, int64_t lanes);
int64_t executed_products(const GradWeightShape& work, const BrgemmGradLayout& l, int64_t lanes);
int64_t executed_products(const LowGrouped& work, int64_t lanes);
int64_t executed_products(const LowGradient& work);

}  // namespace groupwise
