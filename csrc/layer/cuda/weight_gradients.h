// The gradients of a layer's weights on a GPU: library products of what the recurrence leaves.
#pragma once

#include "layer/cuda/layer.h"

namespace birnn::gpu {

// Steps [first, last) of a direction's recurrence, counted from where it starts.
struct Steps {
  int64_t first = 0, last = 0;
  int64_t count() const { return last - first; }
};

// The first of the rows, of B each, that these steps of a direction cover in the batch. Only where
// all sequences are full.
inline int64_t first_time(const Steps& steps, int64_t seq_len, bool reverse) {
  return reverse ? seq_len - steps.last : steps.first;
}

// What the products are made of. Rows are [N, ...], step t of sequence b at t * B + b.
struct WeightOperands {
  Tensor x;       // [N, I], zeros past the ends; undefined if no weight_ih needs a gradient
  Tensor output;  // [N, D * S]
  Tensor hx;      // [D, B, S] or undefined
  Tensor cx;      // [D, B, H] or undefined
  // [D, B, width] and [D, B, S]: of the sequences that have a step, where lengths differ; else
  // undefined.
  Tensor first_dgates, started_hx;
  Tensor dgates;   // [N, D * width], width being dgates_blocks * H
  Tensor dproj;    // [D, N, S], projection only
  Tensor reserve;  // [D, N, reserve_blocks * H]
  Tensor padding;  // [N, 1], true past the ends; undefined where there is nothing past them
  Rows rows;
};

class WeightGradients {
 public:
  // needs_grad: input, hx, cx, weights... parts: into how many the steps are divided, at most.
  // biases_given: the recurrence writes the gradients of the biases.
  WeightGradients(const Problem& p, const std::vector<bool>& needs_grad, int parts,
                  bool biases_given);

  bool needs(int d, int weight) const;  // by place among a direction's weights
  bool any_weight_ih() const { return any(0); }
  bool any_weight_hh() const { return any(1); }
  // Whether weight_hr or weight_ch needs a gradient, the last of a direction's where there is one.
  bool any_last() const {
    return (p_.shape.proj_size > 0 || p_.has_peepholes()) && any(p_.weights_per_direction - 1);
  }

  // Adds the products of these steps of direction d, on a queue of the current stream. The parts
  // of a direction come in a row, the last steps first.
  void add(int d, const Steps& steps, const WeightOperands& operands, const Queue& queue);
  // Where the recurrence writes the gradient of bias_ih (0) or bias_hh (1), or null.
  void* bias_of_recurrence(int d, int which) const;
  // What is no product of a part: the biases, unless they are given; projection; peepholes. After
  // the last part.
  void finish(int d, const WeightOperands& operands, const Queue& queue);

  // In the order of the problem's weights; shape [0] where no gradient was asked for.
  std::vector<Tensor> results() const;

 private:
  struct Direction {
    std::vector<Tensor> weights;  // the results, undefined where not asked for
    Tensor sum_weight_ih,
        sum_weight_hh;  // what the products add to: fp32 where several are rounded
    bool started = false;
  };
  bool any(int weight) const;
  void add_peepholes(int d, const WeightOperands& operands);
  Tensor& weight(int d, int i) { return directions_[d].weights[i]; }

  const Problem& p_;
  std::vector<bool> needs_grad_;
  bool biases_given_;
  std::vector<Direction> directions_;
};

}  // namespace birnn::gpu
