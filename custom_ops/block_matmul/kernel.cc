// BlockMatMul: x [..., K] float32 times weight [N, K] transposed.
#include "native/kernel.h"
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

struct BlockMatMul {
  Status* create(const Info&) { return nullptr; }
  Status* compute(const Context& context) const {
    Tensor x, weight, y;
    EDGE_TRY(context.input(0, &x));
    EDGE_TRY(context.input(1, &weight));
    y.rank = x.rank; for(size_t i=0;i<x.rank;i++) y.dims[i]=x.dims[i];
    y.dims[y.rank-1]=weight.dims[0];
    EDGE_TRY(context.output(0, &y));
    int64_t M=x.count(x.rank-1),K=x.last(),N=weight.dims[0];
    return context.parallel(size_t(N),[&](size_t n)->Status*{
      for(int64_t m=0;m<M;m++){ float a=0; for(int64_t k=0;k<K;k++){ float w; if(weight.type==ElementType::kFloat32) w=weight.as<float>()[n*K+k]; else if(weight.type==ElementType::kFloat16) w=load_part(weight.as<Half>()+n*K+k,1)[0]; else w=load_part(weight.as<Bfloat>()+n*K+k,1)[0]; a+=x.as<float>()[m*K+k]*w;} y.as<float>()[m*N+n]=a; } return nullptr; });
  }
};

EDGE_KERNEL(block_matmul, BlockMatMul)

}  // namespace EDGE_ISA
}  // namespace edge
