import type { CompiledGraph } from "../graph/compile.js";

/** The graphs of a model, each compiled at first use. Beyond `limit` those go that were not used for longest. */
export class GraphCache {
  private readonly made = new Map<string, Promise<CompiledGraph>>();
  private readonly ready = new Map<Promise<CompiledGraph>, CompiledGraph>();
  private disposed = false;

  constructor(private readonly limit = Infinity) {}

  protected once(key: string, make: () => Promise<CompiledGraph>): Promise<CompiledGraph> {
    let graph = this.made.get(key);
    if (graph) this.made.delete(key);
    else {
      const making = (graph = make());
      // One that is finished after dispose() is freed then.
      making.then((compiled) => (this.disposed ? compiled.dispose() : this.ready.set(making, compiled)), () => this.made.delete(key));
    }
    this.made.set(key, graph);
    if (this.made.size > this.limit) {
      const [oldest] = this.made.keys();
      this.free(this.made.get(oldest!)!);
      this.made.delete(oldest!);
    }
    return graph;
  }

  private free(graph: Promise<CompiledGraph>): void {
    const compiled = this.ready.get(graph);
    this.ready.delete(graph);
    if (compiled) compiled.dispose(); // at once: a model's weights are free when its dispose() returns
    else void graph.then((late) => late.dispose(), () => undefined);
  }

  dispose(): void {
    this.disposed = true;
    for (const graph of this.made.values()) this.free(graph);
  }
}
