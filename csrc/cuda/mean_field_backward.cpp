// The backward pass of mean field: the iterations in reverse, in steps or fused.

#include <ATen/ops/zeros_like.h>

#include "mean_field_batch.h"

namespace densecrf::cuda {
namespace {

// Collects the gradients of one term's features and norm. With y = n_out K (n_in Q) they follow from the gradients of
// the barycentric weights: at the slice the gradient of y is paired with the blurred Q of each vertex, at the splat Q
// with that gradient blurred backwards. The compatibility is a factor of each channel.
template <class T>
struct FilterGradient {
  explicit FilterGradient(const LatticeTensors& lattice)
      : at_slice(at::zeros_like(lattice.weights)), at_splat(at::zeros_like(lattice.weights)) {}
  at::Tensor at_slice, at_splat;
};

}  // namespace

template <class T>
at::Tensor backward_in_steps(const MeanFieldBackwardInputs& inputs, bool logarithm, bool wants_products,
                             const at::Tensor& products, const std::vector<at::Tensor>& grad_features,
                             const std::vector<at::Tensor>& grad_norms, cudaStream_t stream) {
  const int64_t batch = inputs.batch(), channels = inputs.channels(), points = inputs.grid.points();
  const int64_t image = points * channels;
  SteppedTerms<T> steps(inputs.terms, inputs.grid, batch, channels, inputs.history);
  const at::Tensor x = at::empty_like(steps.y), g = at::empty_like(steps.y), total = at::empty_like(steps.y);
  const at::Tensor parts = at::empty({batch, product_parts(points), channels}, x.options());
  std::vector<FilterGradient<T>> filters;
  if (!grad_features.empty())
    for (const BatchTerm& term : inputs.terms) filters.emplace_back(term.lattice);

  const auto history = [&](int iteration) {
    return BatchView<const T>{inputs.history.const_data_ptr<T>() + iteration * image, inputs.iterations() * image,
                              channels, 1};
  };
  SoftmaxGradient<T> softmax{batch,
                             points,
                             static_cast<int>(channels),
                             view_channels<T>(inputs.grad),
                             view_channels<T>(inputs.result),
                             logarithm,
                             g.mutable_data_ptr<T>(),
                             total.mutable_data_ptr<T>(),
                             true};
  softmax_gradient(softmax, stream);
  for (int iteration = inputs.iterations() - 1; iteration >= 0; --iteration) {
    x.zero_();
    const auto q = history(iteration), grad_logits = steps.read(steps.view(g));
    for (size_t k = 0; k < steps.terms.size(); ++k) {
      const Term<T> forward = steps.terms[k], backward = transposed(forward);
      const ChannelFactor<T> energy = energy_factor(forward);
      const bool matrix = forward.compatibility == Compatibility::matrix, keeps_y = wants_products || matrix;
      const auto pair_with = [&](const BatchView<const T>& values, at::Tensor FilterGradient<T>::* end) {
        return [&, values, end](const RowBuffers<T, T>& rows, int64_t first, int64_t count) {
          if (!filters.empty())
            pair(rows, values.from(first), static_cast<int>(count), energy.from(first * energy.step),
                 (filters[k].*end).template mutable_data_ptr<T>(), stream);
        };
      };
      // y = K transposed · gradient of the logits
      const ChannelFactor<T> factor = keeps_y ? ChannelFactor<T>{nullptr, 0, T(1)} : energy;
      steps.filter(k, backward, grad_logits, factor, true, !keeps_y, steps.view(keeps_y ? steps.y : x), stream,
                   pair_with(q, &FilterGradient<T>::at_splat));
      if (wants_products)
        add_products(
            batch, points, static_cast<int>(channels), steps.y.template const_data_ptr<T>(), q,
            parts.mutable_data_ptr<T>(),
            BatchView<T>{products.mutable_data_ptr<T>() + static_cast<int64_t>(k) * channels, products.stride(0), 0, 1},
            stream);
      if (matrix)
        subtract_matrix(batch * points, static_cast<int>(channels), forward.compat, true,
                        steps.y.template const_data_ptr<T>(), x.mutable_data_ptr<T>(), stream);
      else if (wants_products)
        add_scaled_rows(batch * points, static_cast<int>(channels), energy, steps.y.template const_data_ptr<T>(),
                        x.mutable_data_ptr<T>(), stream);
      if (!filters.empty())
        steps.filter(k, forward, q, factor, false, false, BatchView<T>{}, stream,
                     pair_with(grad_logits, &FilterGradient<T>::at_slice));
    }
    softmax.grad = steps.read(steps.view(x));
    softmax.q = q;
    softmax.logarithm = false;
    softmax.first = false;
    softmax_gradient(softmax, stream);
  }

  for (size_t k = 0; k < filters.size(); ++k) {
    const auto lattice = view_lattice<T>(inputs.terms[k].lattice, inputs.grid);
    T* norm = grad_norms[k].size(0) ? grad_norms[k].mutable_data_ptr<T>() : nullptr;
    join_ends(lattice, steps.terms[k].splat_scale, steps.terms[k].slice_scale,
              filters[k].at_splat.template const_data_ptr<T>(), filters[k].at_slice.template mutable_data_ptr<T>(),
              norm, stream);
    weights_to_features(lattice, filters[k].at_slice.template const_data_ptr<T>(),
                        inputs.features[k].const_data_ptr<T>(), grad_features[k].mutable_data_ptr<T>(), stream);
  }
  return total.neg().transpose(1, 2).contiguous();
}

at::Tensor backward_together(const MeanFieldBackwardInputs& inputs, bool logarithm, bool wants_products,
                             const at::Tensor& products, cudaStream_t stream) {
  const int64_t batch = inputs.batch(), channels = inputs.channels();
  TermsTogether<float> together(inputs.terms, inputs.grid, batch, channels, inputs.history);
  for (Term<float>& term : together.terms.of) term = transposed(term);
  const at::Tensor grad_unary = at::empty(inputs.grad.sizes(), inputs.history.options());
  at::Tensor parts;
  MeanFieldGradient problem{inputs.grid,
                            batch,
                            static_cast<int>(channels),
                            view_channels<float>(inputs.grad),
                            view_channels<float>(inputs.result),
                            logarithm,
                            inputs.history.const_data_ptr<float>(),
                            inputs.iterations(),
                            grad_unary.mutable_data_ptr<float>(),
                            nullptr,
                            products.mutable_data_ptr<float>()};
  if (wants_products) {
    parts = at::empty({batch, inputs.grid.tiles(), products.size(1), channels}, products.options());
    problem.products = parts.mutable_data_ptr<float>();
  }
  backward_fused(problem, together.terms, stream);
  return grad_unary;
}

template at::Tensor backward_in_steps<float>(const MeanFieldBackwardInputs&, bool, bool, const at::Tensor&,
                                             const std::vector<at::Tensor>&, const std::vector<at::Tensor>&,
                                             cudaStream_t);
template at::Tensor backward_in_steps<double>(const MeanFieldBackwardInputs&, bool, bool, const at::Tensor&,
                                              const std::vector<at::Tensor>&, const std::vector<at::Tensor>&,
                                              cudaStream_t);

}  // namespace densecrf::cuda
