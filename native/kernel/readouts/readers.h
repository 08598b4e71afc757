// All read-outs that are wanted, of one block of rows after another.
#ifndef REGARD_KERNEL_READOUTS_READERS_H
#define REGARD_KERNEL_READOUTS_READERS_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
struct Readers {
  RowSums<T> sums;
  TopKeys<T> top;
  Mass<T> mass;
  Offsets<T> offsets;
  DistanceBins<T> bins;
  Edges<T> edges;
  Columns<T> columns;
  TopQueries<T> queries;
  Pooled<T> pooled;

  Readers(const regard_problem &p, const T *lse, const Request &q, Scratch &scratch)
      : sums(p, lse, q),
        top(p, q, scratch),
        mass(p, q, scratch),
        offsets(p, q),
        bins(p, q, scratch),
        edges(p, q),
        columns(p, q, scratch),
        pooled(p, q),
        q_(q) {}

  // Where pieces gather what belongs to keys and cells.
  void turn_to(const Gathered<T> &gathered, int64_t piece) {
    columns.turn_to(gathered.columns(piece));
    queries = gathered.top_queries(piece);
    pooled.turn_to(gathered.pooled(piece));
  }

  void start(const Rows<T> &rows) {
    sums.start(rows);
    if (top.wanted()) top.start(rows);
    if (mass.wanted()) mass.start(rows);
    if (offsets.wanted()) offsets.start(rows);
    if (bins.wanted()) bins.start(rows);
    if (edges.wanted()) edges.start(rows);
    if (q_.received) columns.start(rows);
    if (q_.top_query_weights) queries.start(rows, sums);
  }

  // A tile of scores, which become weights.
  void take(const Tile<T> &tile) {
    if (top.wanted()) top.look(tile);
    if (q_.received) columns.look(tile);
    if (q_.top_query_weights) queries.look(tile);

    const bool by_tile = edges.wanted() || q_.received || pooled.wanted();
    const bool masses = mass.wanted() && mass.touches(tile.begin, tile.count);
    const bool near = offsets.wanted() && offsets.touches(tile.rows, tile.begin, tile.count);
    // Sums are enough for a tile that lies in one bin.
    const int bin = bins.wanted() ? bins.common(tile.begin, tile.count) : -1;
    const bool summed = bin >= 0 && sums.wanted();
    const bool spread = bins.wanted() && !summed;
    const bool needed = by_tile || masses || near || spread;
    if (!needed && !sums.wanted()) return;
    sums.take(tile, needed || sums.touches(tile.rows, tile.begin, tile.count));
    if (masses) mass.take(tile);
    if (near) offsets.take(tile);
    if (spread) bins.take(tile);
    if (summed) bins.add(bin, sums.last().sum, tile.rows.width);
    if (edges.wanted()) edges.take(tile);
    if (q_.received) columns.take(tile);
    if (pooled.wanted()) pooled.take(tile);
  }

  void finish(const Rows<T> &rows) const {
    sums.finish(rows);
    if (mass.wanted()) mass.finish(rows);
    if (bins.wanted()) bins.finish(rows);
    if (edges.wanted()) edges.finish(rows);
  }
  // After that, if keys were found by their scores.
  void finish_top(const Rows<T> &rows) const {
    if (top.wanted()) top.finish(rows, [&](T score, int r) { return sums.weight(score, r); });
  }

 private:
  const Request &q_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
