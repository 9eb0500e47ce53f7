import type { CompiledGraph } from "../graph/compile.js";

/** The graphs of a model, each compiled at first use. Beyond `limit` those go that were not used for longest. */
export class GraphCache {
  private readonly made = new Map<string, Promise<CompiledGraph>>();
  private disposed = false;

  constructor(private readonly limit = Infinity) {}

  protected once(key: string, make: () => Promise<CompiledGraph>): Promise<CompiledGraph> {
    let graph = this.made.get(key);
    if (graph) this.made.delete(key);
    else {
      graph = make();
      // One that is finished after dispose() is freed then.
      graph.then((compiled) => this.disposed && compiled.dispose(), () => this.made.delete(key));
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
    void graph.then((compiled) => compiled.dispose(), () => undefined);
  }

  dispose(): void {
    this.disposed = true;
    for (const graph of this.made.values()) this.free(graph);
  }
}
